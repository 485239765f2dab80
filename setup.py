"""Installs at_jax. `at_jax.attacks` needs jax and numpy only; training needs `at_jax[train,data]`."""

import pathlib

import setuptools

TRAIN = [
    'flax>=0.11',
    'optax>=0.2.4',
    'orbax-checkpoint>=0.12.0',
    'absl-py>=2.1',
    'ml-collections>=1.0',
    'tensorboardX>=2.6',
    'pillow>=10',  # draws the images of tensorboardX
    'tqdm>=4.60',
]
ANALYSIS = ['matplotlib>=3.8']  # a part of the extra `train`, so that every run can be reported
DATA = ['tensorflow-datasets>=4.9.10', 'array-record>=0.5', 'pillow>=10', 'scikit-learn>=1.4']
# grain reads the files of TFDS during training; it needs array-record 0.8.1.
STREAM = [*DATA, 'grain>=0.2.18']
# The tests attack models of Equinox and Haiku, and execute the notebooks.
DEV = ['pytest>=8', 'pytest-xdist>=3.7', 'hypothesis>=6.100', 'chex>=0.1.89', 'ruff>=0.9', 'equinox',
       'dm-haiku', 'safetensors>=0.4', 'nbclient>=0.10', 'ipykernel>=6.29']

setuptools.setup(
    name='at_jax',
    version='0.1.0',
    description='Adversarial training in JAX: attacks, robust training and its analysis.',
    long_description=pathlib.Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=setuptools.find_packages(include=['at_jax', 'at_jax.*']),
    install_requires=['jax>=0.7.2', 'numpy>=1.26'],
    extras_require={
        'train': TRAIN + ANALYSIS,
        'data': DATA,
        'stream': STREAM,
        'analysis': ANALYSIS,
        'all-cpu': TRAIN + ANALYSIS + STREAM,
        'cuda12': ['jax[cuda12]>=0.7.2'],
        'cuda13': ['jax[cuda13]>=0.7.2'],
        'tpu': ['jax[tpu]>=0.7.2'],
        # A pair tested together, for an environment of its own: libtpu changes what jax starts.
        'plan': TRAIN + ['jax[tpu]==0.12.0.1', 'libtpu==0.0.50.1'],
        'dev': DEV + ANALYSIS,
        'torch': ['torch>=2.2', 'flax>=0.11', 'safetensors>=0.4'],
        'peers': ['torch>=2.2', 'foolbox', 'pyautoattack==0.2.0'],
    },
)
