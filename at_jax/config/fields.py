"""What a run can be told: every field with its default.

A file in `configs/` starts from `default()` and says what its published row changes. Radii and step
sizes are in 255ths (`epsilon_255`), because a command line cannot say 8/255.
"""

import ml_collections


def default() -> ml_collections.ConfigDict:
  """The configuration that every file in `configs/` starts from: PGD-AT on CIFAR-10.

  Returns:
    A `ConfigDict`; a field's comment gives its unit and the values it takes.

  Example:
    >>> default().attack.epsilon_255
    8.0

  Source: ours.
  """
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.epochs = 130
  c.batch_size = 128  # over all devices
  # 'standard' (clean examples), 'pgd_at', 'trades', 'gair_trades', 'mart', 'consistency' (on PGD-AT)
  # or 'finetune'. It also decides what the inner maximisation maximises, and from which start.
  c.loss = 'pgd_at'
  # Of the loss's regulariser, where it has one: TRADES' β, MART's, Consistency's λ, fine-tuning's λ.
  c.beta = 6.0
  c.consistency_temperature = 0.5
  c.awp_gamma = 0.0  # of adversarial weight perturbation; 0 is none
  c.log_every_steps = 50

  c.dataset = ml_collections.ConfigDict()
  c.dataset.name = 'cifar10'  # a name of at_jax.datasets, or the path of an .npz
  c.dataset.num_classes = 10
  c.dataset.data_dir = ''  # where prepared TFDS data lies; '' is where TFDS looks by itself
  c.dataset.validation_size = 1000  # held out of train, for choosing the best checkpoint
  c.dataset.pad = 4  # pixels of zero padding before the random crop
  c.dataset.flip = True  # random horizontal flip
  c.dataset.augment = 'crop'  # or 'autoaugment': then CIFAR-10's AutoAugment policy, and Cutout
  c.dataset.autoaugment_start_epoch = 0  # crop and flip alone before

  c.model = ml_collections.ConfigDict()
  c.model.name = 'PreActResNet18'  # a class of at_jax.models; the other fields are its arguments
  c.model.dtype = 'float32'  # of the computation, or 'bfloat16'; parameters are float32

  c.attack = ml_collections.ConfigDict()  # the inner maximisation
  c.attack.norm = 'linf'  # or 'l2'
  c.attack.epsilon_255 = 8.0
  c.attack.step_size_255 = 2.0
  c.attack.num_steps = 10
  c.attack.start = 'uniform'  # in the ball; or 'beside', x + .001 · N(0, 1), as TRADES and MART have it
  # Friendly PGD: from epoch friendly_epochs[i] on an example stops friendly_taus[i + 1] steps past
  # the boundary, before the first of them friendly_taus[0]; () never stops an example.
  c.attack.friendly_taus = ()
  c.attack.friendly_epochs = ()

  c.weights = ml_collections.ConfigDict()  # of examples
  c.weights.kind = 'none'  # 'geometry' (GAIRAT), 'margin' (MAIL) or 'class_wise'
  c.weights.on = 'fit'  # the term that they multiply: 'fit', 'regulariser' or 'both'
  c.weights.start_epoch = 60  # each example counts the same before
  c.weights.lam = -1.0  # geometry: λ; inf is no weights
  # geometry: 'stages', λ is later_lams[i] from epoch lam_epochs[i] on; or 'linear', λ is on the line
  # from lam_first, at the beginning of training, to lam at its end.
  c.weights.schedule = 'stages'
  c.weights.later_lams = ()
  c.weights.lam_epochs = ()
  c.weights.lam_first = 1.0
  c.weights.form = 'tanh'  # geometry: or 'sigmoid', 'discrete'
  c.weights.normalized = True  # geometry: mean 1 over the batch
  c.weights.bias = -0.5  # margin: b
  c.weights.slope = 10.0  # margin: s
  c.weights.base = 0.5  # class_wise: the larger, the flatter

  # CFA: with t_k the robust training accuracy of class k in the epoch before, its radius is
  # (radius_base + t_k) · ε; its β is (beta_base + t_k) · β, in (fit + β_y · regulariser)/(1 + β_y);
  # and (ours) the training loss takes its logits over temperature_base + t_k.
  c.calibration = ml_collections.ConfigDict()
  c.calibration.radius = c.calibration.beta = c.calibration.temperature = False
  c.calibration.radius_base = c.calibration.beta_base = c.calibration.temperature_base = 0.5
  c.calibration.start_epoch = 10  # each factor is 1 before

  c.dummy = ml_collections.ConfigDict()  # DUCAT
  c.dummy.enabled = False
  c.dummy.start_epoch = 104  # the authors' 105th epoch, the last before the second fall
  c.dummy.benign_weight = 0.25
  c.dummy.adversarial_weight = 1.0
  c.dummy.alpha = 1.0
  c.dummy.attack_logits = 'raw'  # what the inner maximisation sees: all 2C, or the folded C

  c.finetune = ml_collections.ConfigDict()  # of the loss 'finetune'
  c.finetune.start_epoch = 100  # clean training before; 0 begins at once, from `source`
  c.finetune.source = ''  # the work directory of the run whose model it begins from; '' is none
  c.finetune.checkpoint = 'best'  # of the source, or 'last'
  c.finetune.distance = 'kl'  # of f(x') to the clean prediction; 'cross_entropy' is to the label
  c.finetune.anchor = 'kl'  # of f(x) to the teacher's logits, or 'squared'
  c.finetune.anchor_weight = 1.0  # μ
  c.finetune.learning_rate = 0.01  # the largest
  c.finetune.warmup_epochs = 1.0  # of a linear rise to it
  c.finetune.decay_factor = 0.5  # an epoch afterwards, falling with every step
  c.finetune.tolerance = 0.005  # how much clean accuracy on the validation split may be lost
  c.finetune.batch_norm = 'shared'  # or 'dual', one for x and one for x'
  c.finetune.deployed = 'clean'  # dual: the one that is attacked and evaluated, or 'adversarial'
  # 'boundary' stops an example τ steps past the boundary; 'radius' keeps a share of attack.epsilon
  # for each example; 'controller' one for all, by the clean accuracy on the validation split.
  c.finetune.regulator = 'none'
  c.finetune.tau = 1  # boundary: τ
  c.finetune.initial = 0.25  # radius, controller: the share at the start
  c.finetune.delta = 0.25  # radius: its change each time an example is met; controller: each epoch

  c.optimizer = ml_collections.ConfigDict()  # SGD
  c.optimizer.name = 'sgd'  # or 'entropy_sgd', whose anchors another SGD moves
  c.optimizer.learning_rate = 0.1
  c.optimizer.momentum = 0.9
  c.optimizer.weight_decay = 5e-4
  c.optimizer.schedule = 'piecewise'  # or 'cosine', to zero at the last epoch
  c.optimizer.decay_epochs = (100, 105)  # where 'piecewise' multiplies by decay_factor
  c.optimizer.decay_factor = 0.1
  c.optimizer.ema_decay = 0.0  # of averaged weights, which are then what is evaluated; 0 is none
  c.optimizer.swa_start_epoch = 0  # averages the ends of epochs from this one on instead; 0 is none
  c.optimizer.fair_decay = 0.0  # CFA: of averaged ends of epochs instead; 0 is none
  c.optimizer.fair_threshold = 0.2  # robust validation accuracy of the worst class to be averaged
  c.optimizer.fair_start_epoch = 50
  c.optimizer.outer = ml_collections.ConfigDict()  # the SGD of EntropySGD's anchors
  c.optimizer.outer.learning_rate = 1.0
  c.optimizer.outer.momentum = 0.0
  c.optimizer.outer.decay_factor = 0.2
  c.optimizer.entropy = ml_collections.ConfigDict()  # arguments of transforms.entropy_sgd
  c.optimizer.entropy.inner_steps = 20  # 0 leaves the outer SGD alone
  c.optimizer.entropy.inner_learning_rate = 0.1
  c.optimizer.entropy.gamma = 0.03
  c.optimizer.entropy.scoping = 1e-3
  c.optimizer.entropy.noise = 1e-4
  c.optimizer.entropy.momentum = 0.9

  c.validate = ml_collections.ConfigDict()  # PGD on the validation split chooses the best checkpoint
  c.validate.choose_by = 'average'  # or 'average_and_worst', plus that of the worst class
  c.validate.every_epochs = 1
  c.validate.num_steps = 10
  c.validate.batch_size = 500

  c.checkpoint = ml_collections.ConfigDict()
  c.checkpoint.every_steps = 0  # 0 is once an epoch
  c.checkpoint.keep = 2  # the newest, and besides them the best

  c.inference = ml_collections.ConfigDict()  # fitted on the validation split, deployed (ours)
  c.inference.kind = 'none'  # 'bias' or 'temperature' of each class's logit, for the worst class
  c.inference.rounds = 10  # of attacking the model as changed so far, then changing it
  c.inference.rate = 1.0  # logits (or log temperature) for a robust accuracy that differs by 1

  c.evaluate = ml_collections.ConfigDict()  # on the test set, at the end
  # 20 steps of PGD; 100 on the margin with 5 restarts; 20 at each of eight scales of the logits; 100
  # on the margin of own and dummy logits, where there are any. Also pgd20x5, fgsm, autoattack,
  # autoattack_plus and autoattack_rand, and AutoAttack's parts by name: apgd-t, fab-t, square, ….
  c.evaluate.attacks = ('pgd20', 'margin100x5', 'scales_pgd20', 'dummies_pgd100')
  # What AutoAttack's search computes in: 'bfloat16' is faster where the hardware has it, and counts
  # only what the model as it is confirms; '' is as the model.
  c.evaluate.search_dtype = ''
  c.evaluate.norm = c.attack.get_oneway_ref('norm')  # or another: 'linf', 'l2' or 'l1'
  c.evaluate.epsilon_255 = c.attack.get_oneway_ref('epsilon_255')
  c.evaluate.step_size_255 = c.attack.get_oneway_ref('step_size_255')
  c.evaluate.num_examples = 0  # the first of the test set; 0 is all
  c.evaluate.batch_size = 256
  return c


def flatten(tree: dict, prefix: str = '') -> dict:
  """A nested configuration as one dictionary from 'attack.epsilon_255' to its value.

  Args:
    tree: nested dictionaries, as `ConfigDict.to_dict()` or a config.json gives them.
    prefix: what the names begin with.

  Returns:
    The flat dictionary; tuples have become lists, as they do in a JSON file.

  Example:
    >>> flatten({'attack': {'norm': 'l2'}, 'mean': ((1,), 2)})
    {'attack.norm': 'l2', 'mean': [[1], 2]}

  Source: ours.
  """
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= flatten(value, f'{prefix}{name}.')
    else:
      flat[prefix + name] = _as_json(value)
  return flat


def _as_json(value):
  return [_as_json(each) for each in value] if isinstance(value, list | tuple) else value
