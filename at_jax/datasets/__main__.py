"""The command `python -m at_jax.datasets NAME`: prepares a data set and prints its sizes."""

from collections.abc import Sequence
import sys
import warnings

from at_jax import environment, errors
from at_jax.datasets import pipeline


def main(argv: Sequence[str] | None = None) -> int:
  """Downloads and prepares a data set if needed, reads it, and prints its sizes.

  Args:
    argv: the command line without the program; None for that of this process.

  Returns:
    The exit code: 0, or 2 after a line on stderr with the error and the remedy.
  """
  description = main.__doc__.partition('\n')[0]
  parser = environment.parser('python -m at_jax.datasets', description)
  parser.add_argument('name', help=f'digits, {", ".join(pipeline.TFDS_SETS)}, another data set '
                      'of TFDS, or a path to a .npz')
  parser.add_argument('--data_dir', help='folder of the prepared data sets; default: that of TFDS')
  args = parser.parse_args(argv)
  warnings.formatwarning = errors.one_line
  try:
    dataset = pipeline.load(args.name, data_dir=args.data_dir)
  except errors.UserError as error:
    environment.log(str(error))
    return 2
  shape = 'x'.join(str(size) for size in dataset.train.images.shape[1:])
  train, test = len(dataset.train.labels), len(dataset.test.labels)
  print(f'{dataset.name}: {train} training images, {test} test images, {shape}, '
        f'{dataset.num_classes} classes')
  return 0


if __name__ == '__main__':
  sys.exit(main())
