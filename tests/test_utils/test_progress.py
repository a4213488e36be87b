"""A bar of progress is drawn on a terminal, on stderr, and nowhere else."""

import os
import subprocess
import sys
import threading

import pytest

from cropr_mm.utils import progress
from cropr_mm.utils.progress import track

pytestmark = pytest.mark.skipif(os.name != 'posix', reason='needs a pseudo-terminal')

# The module alone, as importing the package takes far longer than these loops.
LOAD = f"""
import importlib.util, sys, threading, time
spec = importlib.util.spec_from_file_location('progress', {progress.__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
track = module.track
"""
LOOPS = f"""
{LOAD}
for i in track(range(3), 'outer'):
    for j in track(iter('ab'), 'inner', 2):
        time.sleep(0.11)
    print('line', i, flush=True)
    assert threading.active_count() == 1
print('end')
"""
FAILS = f"""
{LOAD}
try:
    for i in track(range(3), 'rows'):
        if i == 1:
            raise ValueError('rows=1; 2 is expected')
except ValueError as error:
    sys.exit(f'error: {{error}}')
"""


def run(script, stdout=subprocess.PIPE, **environment):
    """What a script writes to stdout and to a terminal that is its stderr, or both."""
    import pty

    ours, theirs = pty.openpty()
    seen = []

    def read():
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end is closed
                return
            seen.append(part)

    environment = {**os.environ, 'TERM': 'xterm', 'COLUMNS': '80', **environment}
    process = subprocess.Popen(
        [sys.executable, '-c', script], stdout=theirs if stdout is None else stdout, stderr=theirs, env=environment
    )
    os.close(theirs)
    reader = threading.Thread(target=read)
    reader.start()
    out = b'' if stdout is None else process.stdout.read()
    process.wait()
    reader.join()
    os.close(ours)
    return out.decode(), b''.join(seen).decode(), process.returncode


def test_on_a_terminal_bars_are_on_stderr_and_go():
    out, err, code = run(LOOPS)
    assert (out, code) == ('line 0\nline 1\nline 2\nend\n', 0)
    assert 'outer' in err and 'inner' in err and '2/3' in err and '1/2' in err
    assert '\x1b[2K' in err[-20:]  # the last thing drawn is erased
    assert err.rindex('\x1b[?25h') > err.rindex('\x1b[?25l')  # the cursor is back


def test_lines_on_the_same_terminal_stand_above_the_bar():
    _, both, code = run(LOOPS, stdout=None)
    assert code == 0
    for i in range(3):
        assert f'line {i}\r\n' in both
    assert both.endswith('end\r\n')


def test_a_terminal_that_cannot_draw_stays_quiet():
    out, err, code = run(LOOPS, TERM='dumb')
    assert (out, err, code) == ('line 0\nline 1\nline 2\nend\n', '', 0)


def test_without_a_terminal_nothing_is_drawn():
    done = subprocess.run([sys.executable, '-c', LOOPS], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ('line 0\nline 1\nline 2\nend\n', '', 0)


def test_an_error_is_one_line_and_the_cursor_comes_back():
    _, err, code = run(FAILS)
    assert code == 1
    assert 'error: rows=1; 2 is expected\r\n' in err and 'Traceback' not in err
    assert err.rindex('\x1b[?25h') > err.rindex('\x1b[?25l')


def test_items_pass_unchanged(capfd):
    assert list(track((i for i in 'abc'), 'letters')) == ['a', 'b', 'c']
    assert list(track([1, 2], 'numbers', show=False)) == [1, 2]
    assert capfd.readouterr() == ('', '')
