"""Reports of runs: the page, its numbers and figures, CSV, Markdown, unfinished runs, messages."""

import csv
import html.parser
import json
import os
import pathlib
import re
import sys

import numpy as np
import pytest
from scipy import stats

from at_jax import errors
from at_jax.analysis import curves, figures, folders, mcnemar, method_figures, report, statements
from at_jax.analysis import page as page_lib
from tests.fixtures import run_folders

RESULTS = pathlib.Path(__file__).parents[2] / 'results'
AUDIT = {'autoattack_fast': dict(total=40, survivors=12, sampled=10, fallen=1, low=.225, high=.275)}
UNSAFE = '<b>&"x" $1$ `|'  # HTML, a formula of matplotlib, code and a cell of Markdown


class Outline(html.parser.HTMLParser):
  """What a page consists of. Elements must be closed in the order in which they are opened."""
  VOID = {'meta', 'img', 'br', 'link', 'wbr'}

  def __init__(self, text):
    super().__init__()
    self.open, self.elements, self.rows, self.text = [], [], [], ''
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in self.VOID:
      self.open.append(tag)
    if tag == 'tr':
      self.rows.append([])
    if tag in ('td', 'th'):
      self.rows[-1].append('')

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if 'style' not in self.open:
      self.text += data
    if {'td', 'th'} & set(self.open):
      self.rows[-1][-1] += data

  def all(self, tag):
    return [attrs for name, attrs in self.elements if name == tag]

  def row(self, name, place=0):
    """The cells of a table by their headers, of the row with this name in one of its tables."""
    found = [i for i, row in enumerate(self.rows) if row[0] == name][place]
    head = next(row for row in self.rows[found::-1] if row[0] in ('method', 'run'))
    return dict(zip(head, self.rows[found], strict=True))


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """PGD-AT and a rival with two seeds each, a method that is fine-tuned, and a run that is going."""
  folder = tmp_path_factory.mktemp('runs')
  attacks = lambda robust: {'pgd5': robust + 6, 'pgd10': robust + 4, 'pgd20': robust + 2,
                            'autoattack': robust}
  for seed in range(2):
    run_folders.evaluated(folder / f'plain-{seed}', 20 + seed, attacks=attacks(20 + seed),
                          validated=[(.5, .3), (.6, .4), (.6, .25)], config=dict(seed=seed))
    run_folders.evaluated(folder / f'rival-{seed}', 8, attacks=attacks(8), released={'pgd20': 28},
                          validated=[(.5, .3), (.6, .2)], speed=50., step=10,
                          by_class=dict(clean=[1., 0., 0., 0.] if seed else [1., .9, 0., 0.]),
                          config=dict(seed=seed, awp_gamma=.01, replays=4))
  point = lambda step, clean, robust: dict(step=step, clean=.5, robust=.1, epoch=step / 10,
                                           clean_change=clean, robust_gain=robust)
  run_folders.evaluated(
      folder / 'tuned-0', 12, attacks={'pgd20': 14, 'autoattack_fast': 12}, audits=AUDIT,
      validated=[(.5, .1)],
      warnings={'autoattack_fast': ['gradients are <script>alert(1)</script> zero']},
      finetune=dict(curve=[point(10, -.02, .1), point(20, -.004, .05)], chosen=20, tolerance=.005,
                    start=dict(step=0, clean=.5, robust=0.), within_tolerance=True))
  run_folders.going(folder / 'going-0', [(.4, .2), (.5, .25)])
  return folder


@pytest.fixture(scope='module')
def page(runs, tmp_path_factory):
  path = tmp_path_factory.mktemp('page') / 'report.html'
  assert report.main([str(runs), f'--output={path}', '--against=plain']) == 0
  text = path.read_text(encoding='utf-8')
  return text, Outline(text)


def test_page_is_closed_and_accessible(page):
  text, outline = page
  for tag in ('a', 'link', 'script', 'img', 'iframe'):
    for attrs in outline.all(tag):
      assert attrs.get('href', attrs.get('src', '#')).startswith(('#', 'data:image/')), attrs
  without_images = re.sub('src="data:[^"]*"', '', text)
  assert not re.search(r'https?://|@import|url\(', without_images) and not outline.all('script')
  assert len(outline.all('img')) == len(outline.all('figcaption')) >= 6
  assert all(len(attrs['alt']) > 20 for attrs in outline.all('img'))
  assert all(attrs['scope'] in ('col', 'row') for attrs in outline.all('th'))
  assert outline.all('html')[0]['lang'] == 'en' and len(outline.all('h1')) == 1
  ids = [attrs['id'] for _, attrs in outline.elements if 'id' in attrs]
  assert len(ids) == len(set(ids)) and {attrs['href'][1:] for attrs in outline.all('a')} <= set(ids)
  assert 'width=device-width' in text and '@media print' in text


def test_sections_are_top_down(page):
  assert re.findall('<h2>(.*?)</h2>', page[0]) == [
      'What was run', 'Verdict', 'Not evaluated yet', 'Accuracies', 'Audits of fast AutoAttack', 'Warnings',
      'Figures', 'How the models were trained']


def test_numbers_are_those_of_the_results(page):
  row = page[1].row('rival')
  # Eight of 40 are robust in both seeds. The exact interval has these quantiles of beta distributions.
  low, high = stats.beta.ppf(.025, 8, 33), stats.beta.ppf(.975, 9, 32)
  assert row['worst case'] == '20.0 ± 0.0' and row['95 % interval'] == f'{100 * low:.1f} to {100 * high:.1f}'
  assert list(row)[:3] == ['method', 'worst case', '95 % interval']
  assert (row['clean'], row['PGD-20'], row['pgd5']) == ('75.0 ± 0.0', '25.0 ± 0.0', '35.0 ± 0.0')
  assert row['released PGD-20'] == '70.0 ± 0.0' and row['seeds'] == '2'
  # The reference has 20 and 21 robust examples, among them the eight: 12 and 13 are lost, p = 2·2⁻¹².
  assert row['against plain'] == f'+0 −25, p ≤ {2 * .5**12:.2g}' and row['paired test'] == 'less robust'
  # Seed 1 has 21 robust of 40, examples 0 to 20: five of ten in the classes 1, 2, 3.
  assert page[1].row('plain')['worst class'] == '50.0 ± 0.0'
  assert page[1].row('tuned')['audit'] == '1 of 10; 22.5 to 27.5'
  order = [row[0] for row in page[1].rows if row[0] in ('plain', 'rival', 'tuned')]
  assert order[:3] == ['plain', 'tuned', 'rival']  # by worst case


def test_verdict_counts_decided_tests(page, capsys):
  # One of two other methods, `rival`, is less robust in both seeds; `tuned` loses 8 examples, p = 2·2⁻⁸.
  assert ('plain classifies 51.2 ± 1.8 percent of 40 test images correctly in the worst case' in page[1].text
          and 'Against plain, none is more robust and 2 are less robust' in page[1].text)


def test_warnings_are_those_of_the_evaluation(page):
  text = page[1].text
  assert 'tuned-0, warning of autoattack_fast: gradients are <script>alert(1)</script> zero' in text
  assert 'up to 50.0 points above the worst case (rival)' in text  # 28 of 40 against 8
  assert 'The smallest class has 10 test images' in text and '1 of 3 methods has one seed' in text
  assert 'L∞, 8/255: the methods were not evaluated with the same attacks' in text  # `tuned` has other ones
  assert 'AutoAttack was not run' not in text


def test_page_explains_what_it_shows(page):
  outline = page[1]
  for line in ('Training: SmallCNN, 4 epochs, attacks of 5 steps', 'AutoAttack: its standard version',
               'pgd5: PGD of 5 steps on the cross-entropy',
               'PGD-20: PGD of 20 steps on the cross-entropy', 'Released: the evaluation of'):
    assert line in outline.text
  # Only seed 1 of `rival` is always right on one class and never on another.
  assert 'of one class and on no other, so its accuracy is the share of that class: rival-1.' in (
      outline.text)


def test_methods_differ_in_the_fields_that_training_reads(page):
  rows = {row[0]: row[1] for row in page[1].rows if len(row) == 2}
  # `replays` is a field of another loss, and seeds differ between runs of one method.
  assert rows == {'method': 'differs in', 'plain': 'reference', 'rival': 'awp_gamma=0.01', 'tuned': 'nothing',
                  'going': 'nothing'}


def test_going_run_is_shown_as_far_as_it_is(page, runs):
  row = page[1].row('going-0')
  # 20 of 40 steps of 50 examples, at 100 a second: 10 s are left.
  assert row['state'] == 'step 20 of 40, epoch 2.0' and row['training left'] == '10 s'
  assert (row['last loss'], row['validation robust']) == ('1.000', '25.0')
  assert '6 runs of 4 methods; evaluated: 5' in page[1].text
  assert statements.verdict(folders.read([runs / 'going-0']), {}) == [
      '`going-0` is not evaluated yet: step 20 of 40, epoch 2.0. Its last validation, on held-out training '
      'examples, has 50.0 percent clean and 25.0 percent robust accuracy.']


def test_alone_a_going_run_has_a_page(tmp_path, capsys):
  run_folders.going(tmp_path / 'x')  # before its first line; no seed in its name
  (tmp_path / 'x' / 'metrics.jsonl').unlink()
  assert report.main([str(tmp_path / 'x'), f'--output={tmp_path / "r.html"}']) == 0
  assert 'x-0 is not evaluated yet: before its first logged step.' in capsys.readouterr().out
  outline = Outline((tmp_path / 'r.html').read_text(encoding='utf-8'))
  assert outline.row('x-0')['state'] == 'before its first logged step' and not outline.all('img')


def test_single_run_reports_its_recommendation(runs):
  found = folders.read([runs / 'tuned-0'])
  sections = {section.title: section.parts for section in report.build(found, 'tuned', {}, []).sections}
  expected = ('Report the interval. Robust accuracy under fast and AutoAttack is between 22.5 % and 27.5 % '
              '(95 %, 10 of 12 survivors audited, 1 fell)')
  assert sections['Verdict'][0].startswith(expected)
  assert 'paired test' not in sections['Accuracies'][0].head
  assert 'Accuracy in percent: clean 75.0, PGD-20 35.0, ' in sections['Figures'][0].alt


def test_standard_training_has_no_attack(tmp_path):
  run_folders.going(tmp_path / 'x-0', loss='standard')
  sections = report.build(folders.read([tmp_path]), '', {}, []).sections
  cells = next(section.parts[0] for section in sections if section.title == 'How the models were trained')
  assert dict(zip(cells.head, cells.rows[0]))['attack in training'] == 'none'


def test_verdict_names_a_missing_autoattack(tmp_path):
  for name, robust in (('x-0', 9), ('y-0', 8)):
    run_folders.evaluated(tmp_path / name, robust, attacks={'pgd20': robust}, released={'autoattack': 20})
  found = folders.read([tmp_path])
  line, = statements.verdict(found, report.tables(found, 'x'))
  assert line.startswith('L∞, 8/255, without AutoAttack: `x` classifies 22.5 percent of 40 test images')


def test_names_and_texts_are_escaped(tmp_path):
  folder = tmp_path / f'{UNSAFE}-0'
  run_folders.evaluated(folder, 8, attacks={'autoattack': 8}, device='<i>', command='a & <b>')
  assert report.main([str(folder), f'--output={tmp_path / "r.html"}']) == 0
  outline = Outline((tmp_path / 'r.html').read_text(encoding='utf-8'))
  assert not outline.all('b') and not outline.all('i') and '<b>&"x" $1$' in outline.text


def test_markdown_escapes_all_but_code():
  cells = page_lib.Cells('a table', ['run', 'x'], [[f'`{UNSAFE}`', '<i> | *']])
  sections = [page_lib.Section('#', ['<i> `a_b`', ['- c']]), page_lib.Section('t', [cells])]
  text = page_lib.to_markdown(page_lib.Page('A_b', sections), '', pathlib.Path())
  assert text.startswith('# A\\_b\n\n## \\#\n\n\\<i\\> `a_b`\n\n- - c\n\n## t\n\na table:\n\n')
  lines = [line for line in text.splitlines() if line.startswith('|')]
  assert [len(re.findall(r'(?<!\\)\|', line)) for line in lines] == [3, 3, 3]  # as many cells as headers


def test_csv_has_the_exact_numbers(runs, tmp_path):
  path = tmp_path / 'r.csv'
  assert report.main([str(runs), f'--output={path}', '--against=plain']) == 0
  with path.open(newline='', encoding='utf-8') as file:
    lines = {(line['method'], line['seed']): line for line in csv.DictReader(file)}
  assert len(lines) == 6
  for (method, seed), line in lines.items():
    source = runs / f'{method}-{seed}' / 'results.json'
    if not source.exists():
      assert (line['state'], line['worst case']) == ('step 20 of 40, epoch 2.0', '')
      continue
    results = json.loads(source.read_text())
    assert float(line['worst case']) == results['worst_case'] and float(line['clean']) == results['clean']
    assert all(float(line[name]) == share for name, share in results['robust'].items())
  rival, tuned = lines['rival', '1'], lines['tuned', '0']
  assert (rival['against'], rival['gained'], rival['lost']) == ('plain', '0', '13')
  assert float(rival['p']) == pytest.approx(2 * .5**13)  # of 13 examples, none is gained
  assert rival['released pgd20'] == '0.7' and float(tuned['audit high']) == .275
  # 20 steps of 50 examples, at 50 a second.
  assert float(rival['training seconds']) == 20


def test_csv_needs_no_matplotlib(runs, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'matplotlib', None)  # as if it was not installed
  assert report.main([str(runs), f'--output={tmp_path / "r.csv"}']) == 0
  assert report.main([str(runs), f'--output={tmp_path / "r.html"}']) == 2
  line, = capsys.readouterr().err.splitlines()
  assert line == "at_jax: matplotlib = 'missing': it draws the figures: pip install 'at_jax[analysis]'"


def test_pictures_of_other_analyses_are_shown(runs, tmp_path):
  figure = figures.new(1, 1)
  drawn = figures.Captioned('gallery', 'Hard <ones>', figure, 'They fail.', 'Images.')
  figures.write(drawn, tmp_path / 'new')
  path = tmp_path / 'r.html'
  assert report.main([str(runs / 'going-0'), f'--output={path}', f'--pictures={tmp_path / "new"}']) == 0
  outline = Outline(path.read_text(encoding='utf-8'))
  assert outline.all('img')[-1]['alt'] == 'Images.' and 'Hard <ones>' in outline.text
  assert outline.all('figure')[-1]['id'] == 'picture-gallery'


def test_markdown_has_its_figures_beside_it(runs, tmp_path):
  assert report.main([str(runs / 'plain-0'), f'--output={tmp_path / "r.md"}']) == 0
  text = (tmp_path / 'r.md').read_text(encoding='utf-8')
  pictures = re.findall(r'!\[[^]]+\]\((r-figures/[^)]+)\)', text)
  assert len(pictures) >= 3
  assert all((tmp_path / each).read_bytes().startswith(b'\x89PNG') for each in pictures)
  assert re.search(r'^\| `plain` \| 50\.0 \|', text, re.MULTILINE)


def test_figures_say_what_to_see(runs):
  found = folders.read([runs])
  compared = report.tables(found, 'plain')['L∞, 8/255']
  # From 10 to 20 steps each method loses 2 of 40 examples; the first of equals is the most robust one.
  steps = curves.over_steps('s', 'L∞', compared)
  assert 'the last ones take 5.0 points from `plain`' in steps.caption
  assert 'rival: 35.0 at steps 5, 30.0 at steps 10, 25.0 at steps 20' in steps.alt
  # `plain` falls from 40 (its checkpoint, step 20) to 25 percent, `rival` from 30 to 20.
  learning = curves.learning('l', found)
  assert '`plain-0` loses most, 15.0 points' in learning.caption and 'rival-1 -10.0' in learning.alt
  low, high = stats.beta.ppf(.025, 160, 241), stats.beta.ppf(.975, 161, 240)  # 160 of 400
  assert (f'below the 95 % interval of its best checkpoint, {100 * low:.1f} to {100 * high:.1f} on 400 '
          'validation images') in learning.caption
  tuning = curves.finetuning('t', found)
  assert '`tuned-0`, gains 5.0 points for a clean change of −0.4' in tuning.caption
  cost = method_figures.cost('c', 'L∞', compared, {'plain': .25, 'rival': 1 / 3, 'tuned': .2})
  assert 'plain 0.2 min 51.2 percent, tuned 0.2 min 30.0 percent, rival 0.3 min' in cost.alt
  assert 'the slowest, `rival`, takes 0.333 minutes' in cost.caption
  classes = method_figures.classes('k', 'L∞', compared)
  # `plain` has 6 and 5 robust examples of class 0 and 5 of the others; the others have equal classes.
  assert 'class 0 is the weakest in 2 of 3 methods' in classes.caption
  assert curves.over_radii('r', found) is None


def test_evaluations_at_several_radii_are_one_line(tmp_path):
  for epsilon, robust in ((8., 20), (4., 26), (16., 4)):
    run_folders.evaluated(tmp_path / f'e{epsilon:g}-0', robust, attacks={'autoattack': robust},
                          config=dict(evaluate=dict(epsilon_255=epsilon)))
  run_folders.evaluated(tmp_path / 'other-0', 20, attacks={'autoattack': 20}, config=dict(loss='trades'))
  drawn = curves.over_radii('r', folders.read([tmp_path]))
  assert ': 75.0 at radius 0, 65.0 at radius 4, 50.0 at radius 8, 10.0 at radius 16.' in drawn.alt
  assert 'other' not in drawn.alt and '10.0 percent at its largest' in drawn.caption


def test_folder_names_are_methods_and_seeds(tmp_path, monkeypatch):
  for name in ('a/x-0', 'a/x-1', 'b/x-1', 'y-small'):
    run_folders.going(tmp_path / name, seed=7)
  monkeypatch.chdir(tmp_path)
  found = folders.read(['a', 'b', 'a/x-0', 'y-small'])  # one is named twice
  names = [(each.method, each.seed) for each in found]
  assert names == [(os.path.join('a', 'x'), 0), (os.path.join('a', 'x'), 1), (os.path.join('b', 'x'), 1),
                   ('y-small', 7)]


def test_runs_without_verdicts_in_a_folder_are_left_out(tmp_path, capsys):
  for name in ('x-0', 'y-0'):
    (run_folders.evaluated(tmp_path / name, 8) / 'verdicts.npz').unlink()
  with pytest.raises(errors.UserError, match=r'no verdicts.npz \(x-0, y-0\): evaluate them again'):
    folders.read([tmp_path])
  run_folders.evaluated(tmp_path / 'z-0', 8)
  run_folders.going(tmp_path / 'going-0')
  assert [each.name for each in folders.read([tmp_path])] == ['going-0', 'z-0']
  assert capsys.readouterr().err == f'{tmp_path}: runs without verdicts.npz are left out: x-0, y-0\n'
  with pytest.raises(errors.UserError, match='x-0.: there is no verdicts.npz in it: evaluate the run again'):
    folders.read([tmp_path / 'x-0'])


def test_incomplete_last_line_of_a_log_is_left_out(tmp_path):
  path = run_folders.going(tmp_path / 'x-0', [(.4, .2)])
  with (path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 30, "lo')  # it is being written
  folder, = folders.read([path])
  assert [line['step'] for line in folder.log] == [10, 10]


def test_seeds_that_disagree_are_inconclusive():
  gained, lost = mcnemar.McNemar(9, 1, .02), mcnemar.McNemar(1, 9, .02)
  assert statements.decide([gained, lost]) == 'inconclusive'
  assert statements.decide([gained]) == 'more robust' and statements.decide([]) == ''


@pytest.mark.parametrize('arguments, message', [
    ([], "RUN = '': name the work directory of a run"),
    (['{folder}/nothing'], "nothing': there is no config.json in it"),
    (['{folder}'], "there is no config.json in it or in its folders"),
    (['gs://bucket/run'], "RUN = 'gs://bucket/run': only local paths"),
    (['{runs}', '--output={folder}/r.pdf'], "r.pdf': use a name that ends in .html, .md or .csv"),
    (['{runs}', '--output={folder}/no/r.html'], "no/r.html': there is no such folder"),
    (['{runs}', '--output={folder}', ], "use a name that ends in"),
    (['{runs}', '--against=plian'], "'plian': no evaluated run is of this method; did you mean 'plain'?"),
    (['{broken}'], "its results.json is not that of a run"),
    (['{other}'], "its config.json is not of a run")])
def test_mistakes_are_one_line(arguments, message, runs, tmp_path, capsys):
  for name, file, text in (('broken', 'results.json', '{'), ('other', 'config.json', '{"epochs": 3}')):
    (tmp_path / 'files' / name).mkdir(parents=True)
    (tmp_path / 'files' / name / file).write_text(text)
    np.savez(tmp_path / 'files' / name / 'verdicts.npz')
  (tmp_path / 'empty').mkdir()
  places = {'runs': runs, 'folder': tmp_path / 'empty', 'broken': tmp_path / 'files' / 'broken',
            'other': tmp_path / 'files' / 'other'}
  # The last --output counts.
  assert report.main([f'--output={tmp_path / "r.csv"}', *(each.format(**places) for each in arguments)]) == 2
  line, = capsys.readouterr().err.splitlines()
  assert line.startswith('at_jax: ') and message in line
  assert not (tmp_path / 'r.csv').exists()


def test_seeds_that_differ_are_refused(tmp_path):
  run_folders.evaluated(tmp_path / 'x-0', 8, attacks={'pgd20': 8})
  run_folders.evaluated(tmp_path / 'x-1', 8, attacks={'autoattack': 8})
  with pytest.raises(errors.UserError, match="'x-1': its attacks are not those of x-0"):
    report.tables(folders.read([tmp_path]), 'x')


@pytest.mark.long
def test_report_of_the_small_table(tmp_path, capsys):
  path = tmp_path / 'r.html'
  others = f'--radii={RESULTS / "radii"}', f'--pictures={RESULTS / "hard_examples"}'
  assert report.main([str(RESULTS / 'small_cifar10'), f'--output={path}', *others]) == 0
  text = path.read_text(encoding='utf-8')
  assert path.stat().st_size <= 2e6
  outline = Outline(text)
  row = outline.row('pgd_at_cifar10')
  assert (row['worst case'], row['clean'], row['seeds']) == ('24.8 ± 1.0', '48.2 ± 0.4', '3')  # README.md
  # The committed example is what the command writes; images depend on the version of matplotlib.
  bare = lambda page: re.sub('src="data:[^"]*"', '', page)
  assert bare(text) == bare((RESULTS / 'report' / 'small_cifar10.html').read_text(encoding='utf-8'))
