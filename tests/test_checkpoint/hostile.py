"""Files that try to do more than hold weights: pickles written by hand, and archives that PyTorch never writes."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
ONE_CYCLE = 'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler'
ARRAY = 'numpy.core.multiarray'

# --- a pickle assembler: each function gives the bytes that leave one thing on the stack ------------------------


def program(content: bytes) -> bytes:
    return b'\x80\x02' + content + b'.'


def name(full: str) -> bytes:
    module, _, last = full.rpartition('.')
    return f'c{module}\n{last}\n'.encode()


def value(plain: Any) -> bytes:
    return pickle.dumps(plain, 2)[2:-1]


def group(*parts: bytes) -> bytes:
    return b'(' + b''.join(parts) + b't'


def call(function: str | bytes, *arguments: bytes) -> bytes:
    return (name(function) if isinstance(function, str) else function) + group(*arguments) + b'R'


def new(cls: str, *arguments: bytes) -> bytes:
    return name(cls) + group(*arguments) + b'\x81'


def build(target: bytes, state: bytes) -> bytes:
    return target + state + b'b'


def mapping(items: Mapping[str, bytes]) -> bytes:
    return b'}(' + b''.join(value(key) + item for key, item in items.items()) + b'u'


def attribute(owner: str | bytes, attr: str) -> bytes:
    return call('__builtin__.getattr', name(owner) if isinstance(owner, str) else owner, value(attr))


def storage(key: str = '0', count: int = 4, kind: bytes = b'ctorch\nFloatStorage\n', location: bytes = b'') -> bytes:
    return group(value('storage'), kind, value(key), location or value('cpu'), value(count)) + b'Q'


def tensor(offset: int = 0, size: Any = (4,), stride: Any = (1,), of: bytes = b'', hooks: bytes = b'') -> bytes:
    rest = (value(offset), value(size), value(stride), value(False), hooks or call('collections.OrderedDict'))
    return call('torch._utils._rebuild_tensor_v2', of or storage(), *rest)


def dtype(code: str, order: str = '<') -> bytes:
    plain = call('numpy.dtype', value(code), value(False), value(True))
    return build(plain, value((3, order, None, None, None, -1, -1, 0)))


def array(code: str, shape: Any, content: bytes, cls: str = 'numpy.ndarray') -> bytes:
    empty = call(f'{ARRAY}._reconstruct', name(cls), value((0,)), call('_codecs.encode', value('b'), value('latin1')))
    return build(empty, group(value(1), value(shape), dtype(code), value(False), content))


def raw(content: bytes) -> bytes:
    return call('_codecs.encode', value(content.decode('latin1')), value('latin1'))


def history(**changed: bytes) -> bytes:
    numbers = array('f8', (2,), raw(bytes(16)))
    state = {'max_length': value(10), '_log_history': numbers, '_count_history': numbers, **changed}
    return build(new(HISTORY), mapping(state))


# --- what is in them --------------------------------------------------------------------------------------------------


def programs(proof: Path) -> Iterator[tuple[str, bytes]]:
    """Names and pickles of one hostile value each; where one can run a command, it makes the file ``proof``."""
    touch, path = value(f'touch {proof}'), value(str(proof))
    code = value(f'open({str(proof)!r}, "w")')
    # Functions that run what they are given, or read and write files.
    yield 'os.system', call('os.system', touch)
    yield 'posix.system', call('posix.system', touch)
    yield 'subprocess.Popen', call('subprocess.Popen', value(['touch', str(proof)]))
    yield 'subprocess.check_output', call('subprocess.check_output', value(['touch', str(proof)]))
    yield 'eval', call('__builtin__.eval', code)
    yield 'exec', call('__builtin__.exec', code)
    yield 'open', call('__builtin__.open', path, value('w'))
    yield 'import', call('__builtin__.__import__', value('antigravity'))
    yield 'compile', call('__builtin__.compile', code, value('f'), value('exec'))
    yield 'importlib', call('importlib.import_module', value('antigravity'))
    yield 'pathlib', call('pathlib.PosixPath', path)
    yield 'partial', call('functools.partial', name('os.system'), touch)
    yield 'methodcaller', call('operator.methodcaller', value('system'), touch)
    yield 'nested pickle', call('pickle.loads', raw(program(call('os.system', touch))))
    yield 'torch.load', call('torch.load', path)
    yield 'torch.hub.load', call('torch.hub.load', path, value('model'))
    yield 'torch.jit.load', call('torch.jit.load', path)
    yield 'config', call('mmengine.config.Config.fromstring', code, value('.py'))
    yield 'rmtree', call('shutil.rmtree', path)
    yield 'numpy.load', call('numpy.load', path)
    yield 'numpy.memmap', call('numpy.memmap', path, value('u1'), value('w+'), value(0), value((4,)))
    yield 'numpy.fromfile', call(f'{ARRAY}.fromfile', path)
    yield 'numpy.frombuffer', call(f'{ARRAY}.frombuffer', raw(bytes(8)), value('O'))
    # The same by other operations.
    yield 'INST', b'(' + touch + b'ios\nsystem\n'
    yield 'OBJ', b'(' + name('os.system') + touch + b'o'
    yield 'NEWOBJ', new('subprocess.Popen', value(['touch', str(proof)]))
    yield 'NEWOBJ_EX', name('subprocess.Popen') + group(value(['touch', str(proof)])) + b'}\x92'
    yield 'STACK_GLOBAL', value('os') + value('system') + b'\x93' + group(touch) + b'R'
    yield 'EXT1', b'\x82\x01'
    yield 'dotted name', b'cmmengine.logging.history_buffer\nHistoryBuffer.mean\n' + group() + b'R'
    # getattr on what it is allowed on, and beyond.
    yield 'getattr init', attribute(HISTORY, '__init__')
    yield 'getattr subclasses', call(attribute(HISTORY, '__subclasses__'))
    yield 'getattr globals', attribute(attribute(HISTORY, 'mean'), '__globals__')
    yield 'getattr class', attribute(value('text'), '__class__')
    yield 'getattr array', attribute('numpy.ndarray', 'tofile')
    yield 'getattr number', call('__builtin__.getattr', name(HISTORY), value(1))
    yield 'getattr one cycle', attribute(ONE_CYCLE, '__init__')
    yield 'function called', call(attribute(HISTORY, 'mean'), value(1))
    # Arrays over foreign memory, or of objects.
    pointers = raw(b'\x41' * 8)
    yield 'ndarray called', call('numpy.ndarray', value((1,)), value('O'), pointers)
    yield 'ndarray made', new('numpy.ndarray', value((1,)), value('O'), pointers)
    yield 'ndarray of numbers', call('numpy.ndarray', value((1,)), value('f8'), pointers)
    odd = call(f'{ARRAY}._reconstruct', name('numpy.ndarray'), value((1,)), value('O'))
    yield 'reconstruct objects', odd
    yield 'reconstruct another class', call(f'{ARRAY}._reconstruct', name(HISTORY), value((0,)), value('b'))
    yield 'reconstruct twice', build(array('f8', (1,), pointers), group(value(1)))
    yield 'array of objects', array('O8', (1,), value(['x']))
    yield 'array of objects from bytes', array('O8', (1,), pointers)
    yield 'array too short', array('f8', (1000,), pointers)
    yield 'array of negative size', array('f8', (-1,), pointers)
    yield 'array of endless size', array('f8', (2**62, 4), pointers)
    yield 'array of entries without size', array('S0', (2**62,), raw(b''))
    yield 'array of another class', array('f8', (1,), pointers, cls='numpy.memmap')
    yield 'scalar of objects', call(f'{ARRAY}.scalar', dtype('O8', '|'), pointers)
    yield 'scalar too short', call(f'{ARRAY}.scalar', dtype('f8'), raw(b'1'))
    yield 'scalar without dtype', call(f'{ARRAY}.scalar', value('f8'), pointers)
    yield 'dtype of fields', call('numpy.dtype', value([('a', 'O')]), value(False), value(True))
    yield 'dtype of dtypes', call('numpy.dtype', value('f8,O8'), value(False), value(True))
    yield 'dtype with fields', build(dtype('f8'), value((3, '<', None, ('a',), {'a': 1}, 8, 1, 16)))
    yield 'dtype with metadata', build(dtype('f8'), value((4, '<', None, None, None, -1, -1, 0, {'a': 1})))
    yield 'dtype as a value', dtype('f8')
    yield 'dtype class', call('numpy.dtypes.Float64DType')
    # Tensors beyond their memory.
    yield 'tensor too long', tensor(size=(1000,))
    yield 'tensor beyond', tensor(offset=1)
    yield 'tensor before', tensor(offset=-1)
    yield 'tensor backwards', tensor(stride=(-1,))
    yield 'tensor with steps', tensor(size=(2, 2), stride=(2**61, 1))
    yield 'tensor of odd shape', tensor(size=(2, 2), stride=(1,))
    yield 'tensor of text', tensor(of=value('storage'))
    yield 'tensor with hooks', tensor(hooks=mapping({'0': name('torch.Size')}))
    yield 'tensor rebuilt by a build', build(tensor(), group(storage(), value(0), value((1000,)), value((1,))))
    yield 'storage as a value', storage()
    yield 'storage too long', tensor(of=storage(count=10**6), size=(10**6,))
    yield 'storage not there', tensor(of=storage('7'))
    yield 'storage of a class', tensor(of=storage(kind=name(HISTORY)))
    yield 'storage elsewhere', tensor(of=storage(location=mapping({})))
    yield 'storage by number', value(0) + b'Q'
    yield 'storage by text', b'P0\n'
    yield 'container with source', group(value('module'), name('torch.Size'), value('f.py'), value('x')) + b'Q'
    yield 'sparse', call('torch._utils._rebuild_sparse_tensor', value(1), group(tensor(), tensor(), value((1,))))
    yield 'meta', call('torch._utils._rebuild_meta_tensor_no_storage', value(1))
    yield 'from type', call('torch._tensor._rebuild_from_type_v2', name('os.system'), name('os.system'), touch, b'}')
    rebuild = name('torch._utils._rebuild_tensor_v2')
    yield (
        'from type of a module',
        call('torch._tensor._rebuild_from_type_v2', rebuild, name('torch.nn.Linear'), b')', b'}'),
    )
    yield (
        'from type by another',
        call('torch._tensor._rebuild_from_type_v2', name('torch.Size'), name('torch.Tensor'), b')', b'}'),
    )
    yield 'module', new('torch.nn.modules.linear.Linear')
    yield 'parameter of text', call('torch._utils._rebuild_parameter', value('x'), value(True), mapping({}))
    yield 'size of text', call('torch.Size', value(['x']))
    yield 'size below zero', call('torch.Size', value([-1]))
    yield 'device of nothing', call('torch.device', value('no such thing'))
    # What would change other objects of the process, or is nothing that a checkpoint holds.
    poison = mapping({'mean': value(1)})
    yield 'state for a class', build(name(HISTORY), group(value(None), poison))
    yield 'state for a function', build(attribute(HISTORY, 'mean'), group(value(None), poison))
    yield 'state for a dict', build(value({}), poison)
    yield 'attributes for a dict', build(call('collections.OrderedDict'), mapping({'__class__': value(1)}))
    yield 'history of foreign functions', history(statistics_methods=mapping({'mean': name('os.system')}))
    yield 'history of attributes', history(update=value(1))
    yield 'history of text', history(_log_history=array('S1', (2,), raw(b'ab')))
    yield 'history of lists', history(_log_history=value([1.0, 2.0]))
    yield 'history with arguments', new(HISTORY, value([1]), value([1]))
    yield 'history called', call(HISTORY, value([1]), value([1]))
    yield 'history without a state', new(HISTORY)
    yield 'scheduler called', call(ONE_CYCLE, value({}), value('lr'))
    yield 'scheduler made', new(ONE_CYCLE)
    yield 'namespace of numbers', build(new('argparse.Namespace'), value({1: 2}))
    yield 'class as a value', name(HISTORY)
    yield 'function as a value', name('torch._utils._rebuild_tensor_v2')
    yield 'item of an array', array('f8', (1,), pointers) + value(0) + value(1) + b's'
    yield 'item of a history', history() + value(1) + b'a'
    yield 'items of a tuple', value(()) + b'(' + value(1) + b'e'
    yield 'counter of text', call('collections.Counter', value('text'))
    yield 'set of lists', call('__builtin__.set', value([[1]]))
    yield 'many bytes', call('__builtin__.bytes', value(10**12))
    yield 'encoding', call('_codecs.encode', value('x'), value('rot13'))
    pairs = b''.join(b'h' + bytes([i]) + b'h' + bytes([i]) + b'\x86q' + bytes([i + 1]) + b'0' for i in range(100))
    yield 'a key that hashes for ever', b'K\1q\x000' + pairs + b'}hdK\1s'
    yield 'a key by key', mapping({}) + value(((1, (2, 3)),)) + value(1) + b's'
    multiples = b''.join(value(i * (2**61 - 1)) + b'N' for i in range(10**5))
    yield 'keys of one hash', b'}(' + multiples + b'u'
    yield 'keys in pairs of one hash', value({(2**60, 1): 1})
    yield 'a long key again and again', value(('a',) * 10**5) + b'q\1' + b'0}' + b'h\1Ns' * 10**5
    yield 'bytes again and again', value('a' * 10**6) + b'q\1' + b'0](' + call('_codecs.encode', b'h\1') * 10**5 + b'e'
    yield (
        'pairs again and again',
        value([(i, i) for i in range(10**4)])
        + b'r\0\1\0\0'
        + b'0]('
        + (call('collections.OrderedDict', b'j\0\1\0\0') * 10**4)
        + b'e',
    )
    twice = b''.join(b'h' + bytes([i]) + b'h' + bytes([i]) + b'\x86q' + bytes([i + 1]) + b'0' for i in range(60))
    yield 'the same part everywhere', b'K\1q\x000' + twice + b'h\x3c'
    yield 'in itself', b']q\1h\1a'
    put = [b'r' + struct.pack('<I', i) for i in range(2000)]
    inner = b']' + put[0] + b'0' + b''.join(b']' + put[i] + b'j' + put[i - 1][1:] + b'a0' for i in range(1, 2000))
    yield 'deep, the inner first', inner + b'](' + b''.join(b'j' + part[1:] for part in put[::-1]) + b'e'
    yield (
        'shape of large numbers',
        build(
            call(f'{ARRAY}._reconstruct', name('numpy.ndarray'), value((0,)), raw(b'b')),
            group(
                value(1), value(2**2000) + b'q\1' + b'0(' + b'h\1' * 10**5 + b't', dtype('f8'), value(False), raw(b'1')
            ),
        ),
    )
    yield 'expanded without end', tensor(size=(2**44,), stride=(0,))
    late = (
        array('f8', (0,), raw(b''))
        + b'q\1'
        + b'0'
        + history(_log_history=b'h\1', _count_history=b'h\1')
        + b'q\2'
        + b'0'
    )
    text = group(value(1), value((2,)), dtype('S1'), value(False), raw(b'ab'))
    yield 'history of text that comes later', late + build(b'h\1', text) + b'0h\2'
    yield 'deep', b']' * 5000 + b'a' * 4999
    yield 'long number', b'\x8b' + struct.pack('<i', 10**6) + b'\xff' * 10**6
    yield 'missing memo', b'h\x07'
    yield 'empty stack', b'R'


def write_archive(path: Path, pickled: bytes, storages: Mapping[str, bytes] | None = None, **options: Any) -> Path:
    """A file as ``torch.save`` writes it, of any content."""
    with zipfile.ZipFile(path, 'w', options.get('compression', zipfile.ZIP_STORED)) as archive:
        archive.comment = options.get('comment', b'')
        archive.writestr('archive/data.pkl', pickled)
        archive.writestr('archive/byteorder', options.get('byteorder', b'little'))
        for key, content in (storages or {'0': bytes(16)}).items():
            archive.writestr(f'archive/data/{key}', content)
        archive.writestr('archive/version', b'3\n')
        for extra in options.get('extra', ()):
            archive.writestr(extra, b'x')
    return path


def two_directories(
    path: Path,
    files: Mapping[str, bytes],
    sizes: Mapping[str, int] | None = None,
    names: Mapping[str, str] | None = None,
    attributes: int = 0,
    same: bool = False,
    twice: bool = True,
) -> Path:
    """An archive with a directory where its end says, and another one, changed, before that end."""
    content, places = b'', {}
    for title, data in files.items():
        places[title] = places['data/0'] if same and title == 'data/1' else len(content)
        if places[title] == len(content):
            head = (0x04034B50, 20, 0, 0, 0, 0, zlib.crc32(data), len(data), len(data), len(title) + 2, 0)
            content += struct.pack('<I5H3I2H', *head) + f'a/{title}'.encode() + data

    def directory(sizes: Mapping[str, int], names: Mapping[str, str]) -> bytes:
        entries = b''
        for title, data in files.items():
            size = sizes.get(title, len(data))
            about = (0x02014B50, 20, 20, 0, 0, 0, 0, zlib.crc32(data), size, size, len(title) + 2, 0, 0, 0, 0)
            outside = attributes if title.startswith('data/') else 0
            entries += struct.pack('<I6H3I5H2I', *about, outside, places[title])
            entries += f'a/{names.get(title, title)}'.encode()
        return entries

    last = directory(sizes or {}, names or {})
    both = (directory({}, {}) if twice else b'') + last
    end = struct.pack('<I4H2IH', 0x06054B50, 0, 0, len(files), len(files), len(last), len(content), 0)
    path.write_bytes(content + both + end)
    return path


def checkpoint(content: bytes) -> bytes:
    """The pickle of a checkpoint of mmengine's shape that has a tensor, and ``content`` among its notes."""
    weights = mapping({'weight': tensor()})
    return program(mapping({'state_dict': weights, 'message_hub': mapping({'note': content}), 'meta': mapping({})}))


def legacy(path: Path, content: bytes, keys: Any = ('0',), count: int = 4) -> Path:
    """A file as PyTorch before 1.6 wrote it."""
    head = b''.join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, dict(little_endian=True)))
    path.write_bytes(
        head
        + content
        + pickle.dumps(list(keys) if keys is not None else (), 2)
        + struct.pack('<q', count)
        + bytes(4 * count)
    )
    return path


def legacy_storage(key: str = '0', count: int = 4, view: Any = None) -> bytes:
    kind = b'ctorch\nFloatStorage\n'
    return group(value('storage'), kind, value(key), value('cpu'), value(count), value(view)) + b'Q'


def write_corpus(folder: Path, proof: Path) -> list[Path]:
    """All hostile files; a healthy one of the same making loads (see :func:`healthy`)."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [
        write_archive(folder / f'{i:03d} {title}.pth', checkpoint(content))
        for i, (title, content) in enumerate(programs(proof))
    ]
    good = checkpoint(value(1))

    def add(title: str, content: bytes | None = None) -> Path:
        files.append(folder / f'{title}.pth')
        if content is not None:
            files[-1].write_bytes(content)
        return files[-1]

    run = call('os.system', value(f'touch {proof}'))
    # Archives that PyTorch does not write.
    write_archive(add('compressed'), good, compression=zipfile.ZIP_DEFLATED)
    write_archive(add('bomb'), good, {'0': bytes(64 << 20)}, compression=zipfile.ZIP_DEFLATED)
    write_archive(add('comment'), good, comment=b'PK\5\6' + bytes(18))
    write_archive(add('two roots'), good, extra=['other/data.pkl'])
    write_archive(add('program inside'), good, extra=['archive/constants.pkl'])
    write_archive(add('byte order'), good, byteorder=b'middle')
    write_archive(add('short storage'), good, {'0': bytes(15)})
    write_archive(add('storage of another name'), good, {'1': bytes(16)})
    write_archive(add('no pickle'), b'')
    twice = add('two pickles')
    write_archive(twice, good)
    with zipfile.ZipFile(twice, 'a') as archive, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # zipfile's own, about the name
        archive.writestr('archive/data.pkl', program(run))
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), str(add('torchscript')))
    # Archives that Python and PyTorch read differently.
    large = program(mapping({'state_dict': mapping({'weight': tensor(size=(10**7,), of=storage('X', 10**7))})}))
    write_archive(add('upper and lower case'), large, {'x': bytes(16), 'X': bytes(4 * 10**7)})
    large = program(mapping({'state_dict': mapping({'weight': tensor(size=(10**7,), of=storage(count=10**7))})}))
    two_directories(add('two directories'), {'data.pkl': large, 'data/0': bytes(16)}, {'data/0': 4 * 10**7})
    script = {name: b'x' for name in ('data.pkl', 'constants.pkl', 'version')}
    two_directories(add('program in one directory'), script, names={'constants.pkl': 'constants.pkx'})
    two_directories(add('folder with contents'), {'data.pkl': good, 'data/0': bytes(16)}, attributes=0x10, twice=False)
    shared = {'data.pkl': good, 'data/0': bytes(10**4), 'data/1': bytes(10**4)}
    two_directories(add('shared bytes'), shared, same=True, twice=False)
    whole = write_archive(folder / 'whole', good).read_bytes()
    (folder / 'whole').unlink()
    for share in (0.1, 0.5, 0.9, 0.99):
        add(f'cut at {share}', whole[: int(len(whole) * share)])
    # Files from before PyTorch 1.6.
    text = program(mapping({'state_dict': mapping({'weight': tensor(of=legacy_storage())})}))
    legacy(add('legacy command'), program(run))
    legacy(add('legacy long storage'), text, count=2)
    legacy(add('legacy huge storage'), program(tensor(of=legacy_storage(count=10**12))))
    legacy(add('legacy missing storage'), text, keys=())
    legacy(add('legacy storages by another name'), text, keys=None)
    legacy(add('legacy storage too many'), text, keys=('0', '1'))
    legacy(add('legacy view beyond'), program(tensor(of=legacy_storage(view=('1', 2, 9)))))
    container = group(value('module'), name('torch.Size'), value('f.py'), value('x')) + b'Q'
    legacy(add('legacy container'), program(container))
    add('legacy command before', program(run) + text)
    with tarfile.open(add('tar'), 'w') as tar:
        for title in ('storages', 'tensors', 'pickle'):
            entry = tarfile.TarInfo(title)
            entry.size = len(program(run))
            tar.addfile(entry, io.BytesIO(program(run)))
    with tarfile.open(add('tar that begins as a pickle'), 'w', format=tarfile.USTAR_FORMAT, encoding='latin1') as tar:
        for title in ('\x80', 'storages', 'tensors', 'pickle'):
            entry = tarfile.TarInfo(title)
            entry.size = len(program(run))
            tar.addfile(entry, io.BytesIO(program(run)))
    # No checkpoints at all.
    add('pickle alone', program(run))
    add('empty', b'')
    add('text', b'no weights')
    add('zeros', bytes(1000))
    add('gzip', gzip.compress(whole))
    files.append(folder / 'cut.safetensors')
    files[-1].write_bytes(struct.pack('<Q', 2**60) + b'{}')
    files.append(folder / 'beyond.safetensors')
    header = b'{"a": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}}'
    files[-1].write_bytes(struct.pack('<Q', len(header)) + header + bytes(16))
    return files


def healthy() -> dict[str, bytes]:
    """Values by the same assembler that a checkpoint may hold: the corpus fails for what it says and no more."""
    counter = call('collections.Counter', value({1: 2}))
    return {
        'number': value(1),
        'tensor': tensor(),
        'expanded': tensor(size=(3, 4), stride=(0, 1)),
        'parameter': call('torch._utils._rebuild_parameter', tensor(), value(True), call('collections.OrderedDict')),
        'array': array('f8', (2,), raw(bytes(16))),
        'scalar': call(f'{ARRAY}.scalar', dtype('f8'), raw(bytes(8))),
        'truth': call(f'{ARRAY}.scalar', dtype('b1', '|'), raw(b'\1')),
        'history': history(statistics_methods=mapping({'mean': attribute(HISTORY, 'mean')})),
        'annealing': attribute(ONE_CYCLE, '_annealing_cos'),
        'counter': counter,
        'set': call('__builtin__.set', value([1, 'a'])),
        'size': call('torch.Size', value([1, 2])),
        'device': call('torch.device', value('cpu')),
        'dtype': name('torch.float16'),
        'bytes': call('__builtin__.bytes'),
        'namespace': build(new('argparse.Namespace'), value({'lr': 0.1})),
        'pairs': call('collections.OrderedDict', value([['a', 1]])),
    }
