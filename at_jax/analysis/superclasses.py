"""Superclasses of CIFAR-10 and CIFAR-100."""

from collections.abc import Sequence

# Animals and vehicles are a usual division of CIFAR-10; its authors name none.
_CIFAR10 = {
    'animals': 'bird cat deer dog frog horse',
    'vehicles': 'airplane automobile ship truck',
}
_CIFAR100 = {
    'aquatic mammals': 'beaver dolphin otter seal whale',
    'fish': 'aquarium_fish flatfish ray shark trout',
    'flowers': 'orchid poppy rose sunflower tulip',
    'food containers': 'bottle bowl can cup plate',
    'fruit and vegetables': 'apple mushroom orange pear sweet_pepper',
    'household electrical devices': 'clock keyboard lamp telephone television',
    'household furniture': 'bed chair couch table wardrobe',
    'insects': 'bee beetle butterfly caterpillar cockroach',
    'large carnivores': 'bear leopard lion tiger wolf',
    'large man-made outdoor things': 'bridge castle house road skyscraper',
    'large natural outdoor scenes': 'cloud forest mountain plain sea',
    'large omnivores and herbivores': 'camel cattle chimpanzee elephant kangaroo',
    'medium mammals': 'fox porcupine possum raccoon skunk',
    'non-insect invertebrates': 'crab lobster snail spider worm',
    'people': 'baby boy girl man woman',
    'reptiles': 'crocodile dinosaur lizard snake turtle',
    'small mammals': 'hamster mouse rabbit shrew squirrel',
    'trees': 'maple_tree oak_tree palm_tree pine_tree willow_tree',
    'vehicles 1': 'bicycle bus motorcycle pickup_truck train',
    'vehicles 2': 'lawn_mower rocket streetcar tank tractor',
}


def members(class_names: Sequence[str]) -> dict[str, list[int]]:
  """Finds the superclasses of a data set by the names of its classes.

  Args:
    class_names: C names. One of CIFAR-10 or CIFAR-100 may be missing, as when a class is left out.

  Returns:
    The labels of each superclass of CIFAR-10 or CIFAR-100; empty for other classes.

  Example:
    >>> names = 'airplane automobile bird deer dog frog horse ship truck'.split()  # without cat
    >>> members(names)
    {'animals': [2, 3, 4, 5, 6], 'vehicles': [0, 1, 7, 8]}
    >>> members(['0', '1'])
    {}

  Reference: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009, for CIFAR-100.
  """
  label = {name: i for i, name in enumerate(class_names)}
  for superclasses in (_CIFAR10, _CIFAR100):
    names = {name: each.split() for name, each in superclasses.items()}
    known = set().union(*names.values())
    if label.keys() <= known and len(label) >= len(known) - 1:
      return {name: [label[each] for each in those if each in label] for name, those in names.items()}
  return {}
