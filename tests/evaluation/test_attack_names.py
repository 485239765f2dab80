"""Names of attacks: what each one runs."""

import pathlib
import re

import pytest

from at_jax.evaluation import attack_names, autoattack_run


@pytest.mark.parametrize('name, expected', [
    ('fgsm', attack_names.Spec(1, 1, False)), ('pgd1', attack_names.Spec(1, 1, True)),
    ('pgd100x3', attack_names.Spec(100, 3, True)), ('pgd0', None), ('pgd', None), ('pgd5x0', None),
    ('PGD5', None), ('', None), (7, None)])
def test_pgd_on_the_cross_entropy(name, expected):
  assert attack_names.parse(name) == expected


@pytest.mark.parametrize('name, expected', [
    ('margin100x5', attack_names.Spec(100, 5, True, 'margin')),
    ('scale0.5_pgd20', attack_names.Spec(20, 1, True, 'scale', .5)),
    ('masking10_pgd20x2', attack_names.Spec(20, 2, True, 'masking', 10.)),
    ('dummy0.25_pgd100', attack_names.Spec(100, 1, True, 'dummy', .25)),
    ('dummysoft_pgd100', attack_names.Spec(100, 1, True, 'dummysoft')),
    ('scale0_pgd20', None), ('dummy1.5_pgd20', None), ('scale_pgd20', None), ('scale5', None),
    ('margin_pgd20', None), ('dummysoft20', None)])
def test_pgd_on_other_losses(name, expected):
  assert attack_names.parse(name) == expected


def test_versions_and_components_of_autoattack():
  assert attack_names.parse('autoattack') == ('standard', None)
  assert attack_names.parse('autoattack_plus') == ('plus', None)
  assert attack_names.parse('autoattack_rand') == ('rand', None)
  assert attack_names.parse('fab-t') == ('standard', ('fab-t',))
  assert attack_names.parse('autoattak') is None


def test_sweeps_list_every_scale_and_weight():
  # 1/T and λ as the papers define the sweeps, written out again here.
  assert attack_names.expand('scales_pgd20') == tuple(
      f'scale{s}_pgd20' for s in ('0.2', '0.5', '1', '2', '5', '10', '20', '50'))
  assert attack_names.expand('dummies_pgd100') == tuple(
      f'dummy{w}_pgd100' for w in ('0', '0.25', '0.5', '0.75', '1')) + ('dummysoft_pgd100',)
  assert not attack_names.known('dummies_pgd') and not attack_names.known('scales_margin20')


def test_tables_of_names_agree():
  page = pathlib.Path(__file__).parents[2] / 'docs' / 'evaluation.md'
  section = page.read_text(encoding='utf-8').partition('## Attacks by name')[2].partition('\n## ')[0]
  shown, described = ([name for cells in re.findall(r'^\| (`.*?) \|', text, flags=re.MULTILINE)
                       for name in re.findall('`(.*?)`', cells)]
                      for text in (section, attack_names.__doc__))
  assert shown == described and all(map(attack_names.known, shown))
  assert len(shown) == len(set(shown)) > len(autoattack_run.CHOICES)
