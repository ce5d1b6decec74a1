"""The table of steps as the C core takes it: sizes, offsets, slots, shared descriptors, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontainer._ffi import lib
from pycontainer.errors import StartError
from pycontainer.runtime.program import CWD, Program
from tests.programs import HEADER, HEADER_SIZE, STEP, STEP_SIZE, read, text_at

plain = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


def test_sizes_are_those_of_the_core() -> None:
    assert (HEADER.size, STEP.size) == (HEADER_SIZE, STEP_SIZE)
    empty = Program().pack()
    assert empty.shared == ()
    assert read(empty).host == read(empty).child == []
    for count in (1, 2, 3):
        program = Program()
        for _ in range(count):
            program.step(lib.PYC_OP_UMASK, "x")
        assert read(program.pack()).header[5] == HEADER_SIZE + count * STEP_SIZE


numbers = st.integers(0, (1 << 64) - 1)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"label": plain, "path": plain, "kind": plain, "a": numbers, "b": numbers, "c": numbers},
            optional={
                "data": st.binary(max_size=40),
                "flags": st.integers(0, 1023),
                "fd": st.integers(-100, 1000),
                "fd2": st.integers(-100, 1000),
                "host": st.booleans(),
                "result": st.booleans(),
            },
        ),
        max_size=12,
    ),
    plain,
)
def test_what_goes_in_comes_out(steps: list[dict[str, Any]], uid_map: str) -> None:
    program = Program()
    program.uid_map = uid_map
    program.clone_flags = 0x6C020000
    results = [program.step(lib.PYC_OP_WRITE, **step) for step in steps]
    packed = program.pack()
    found = read(packed)
    ordered = [s for s in steps if s.get("host")] + [s for s in steps if not s.get("host")]
    assert len(found.host) == sum(bool(s.get("host")) for s in steps)
    for step, seen in zip(ordered, [*found.host, *found.child], strict=True):
        assert seen.op == lib.PYC_OP_WRITE
        assert (seen.label, seen.s1, seen.s3) == (step["label"], step["path"].encode(), step["kind"].encode())
        assert (seen.a, seen.b, seen.c) == (step["a"], step["b"], step["c"])
        assert (seen.fd, seen.fd2, seen.flags) == (step.get("fd", -1), step.get("fd2", -1), step.get("flags", 0))
        assert seen.data == step.get("data", b"")
        assert "data" not in step or seen.s2 % 8 == 0 or not step["data"]
    slots = [lib.PYC_SLOT_BASE - r for r, step in zip(results, steps, strict=True) if step.get("result")]
    assert slots == list(range(len(slots)))
    assert text_at(found.pool, found.header[7]).decode() == uid_map
    assert found.header[6] == 0x6C020000


def test_texts_are_in_the_pool_once() -> None:
    program = Program()
    for _ in range(5):
        program.step(lib.PYC_OP_UMASK, "a long label that is said often", "/a/long/path")
    data = program.pack().data
    assert data.count(b"a long label that is said often\0") == 1
    assert data.count(b"/a/long/path\0") == 1


def test_negative_numbers_are_those_of_the_kernel() -> None:
    program = Program()
    program.step(lib.PYC_OP_RLIMIT, "x", a=-1, b=-2)
    (step,) = read(program.pack()).child
    assert (step.a, step.b) == ((1 << 64) - 1, (1 << 64) - 2)


def test_names_that_are_not_utf_8_survive() -> None:
    program = Program()
    program.step(lib.PYC_OP_CHDIR, "enter", b"/\xff".decode(errors="surrogateescape"))
    program.step(lib.PYC_OP_CHDIR, "enter", b"/\xfe")
    assert [step.s1 for step in read(program.pack()).child] == [b"/\xff", b"/\xfe"]


@pytest.mark.parametrize(
    "add",
    [
        lambda program: program.step(lib.PYC_OP_CHDIR, "enter", "/a\0b"),
        lambda program: program.step(lib.PYC_OP_CHDIR, "a\0b", "/"),
        lambda program: program.step(lib.PYC_OP_SYMLINK, "link", "/x", text="a\0b"),
        lambda program: program.mkdir("make", "a\0"),
        lambda program: program.attach("attach", 3, "\0"),
        lambda program: program.execute("execute", "s\0h", ["sh"], []),
        lambda program: program.execute("execute", "sh", ["sh", "a\0b"], []),
        lambda program: program.execute("execute", "sh", ["\0"], []),
        lambda program: program.execute("execute", "sh", ["sh"], ["A=\0"]),
        lambda program: program.execute("execute", "sh", ["sh"], [], search_path="/bin\0"),
    ],
)
def test_a_nul_byte_is_refused(add: Callable[[Program], object]) -> None:
    with pytest.raises(ValueError, match="NUL byte"):
        add(Program())


@given(st.lists(plain, max_size=6), st.lists(plain, max_size=6))
def test_arguments_and_environment_are_blocks_of_texts(argv: list[str], env: list[str]) -> None:
    program = Program()
    program.execute("execute", "sh", argv, env, search_path="/bin:/usr/bin")
    found = read(program.pack())
    (step,) = found.child
    assert (step.a, step.b) == (len(argv), len(env))
    assert found.header[-1] == len(argv) + len(env)
    assert text_at(found.pool, step.c) == b"/bin:/usr/bin"
    for start, texts in ((step.s2, argv), (step.s3_offset, env)):
        offset = start
        for text in texts:
            assert text_at(found.pool, offset).decode() == text
            offset += len(text.encode()) + 1


def test_options_of_a_mount_end_with_nul_bytes() -> None:
    program = Program()
    fd = program.mount("mount", "tmpfs", ["mode=755", "size=1m"], attributes=2)
    program.attach("attach", fd, "/x", flags=lib.PYC_MAKE_DIR)
    mount, attach = read(program.pack()).child
    assert (mount.s1, mount.data, mount.a, mount.ret) == (b"tmpfs", b"mode=755\0size=1m\0", 2, 0)
    assert (attach.fd, attach.fd2, attach.s1) == (lib.PYC_SLOT_BASE, CWD, b"/x")


# ── slots and descriptors ──


def test_there_is_room_for_so_many_results() -> None:
    program = Program()
    operands = [program.step(lib.PYC_OP_OPEN, "open", "/", result=True) for _ in range(lib.PYC_PASSED)]
    assert len(set(operands)) == lib.PYC_PASSED
    with pytest.raises(ValueError, match=f"too many mounts and devices .*{lib.PYC_PASSED}"):
        program.step(lib.PYC_OP_OPEN, "open", "/", result=True)
    program.step(lib.PYC_OP_OPEN, "open", "/")  # without a result there is no such limit
    read(program.pack())


def test_shared_descriptors_take_room_too() -> None:
    program = Program()
    for fd in range(10):
        program.share(fd)
    for _ in range(lib.PYC_PASSED - 10):
        program.step(lib.PYC_OP_OPEN, "open", "/", result=True)
    with pytest.raises(ValueError, match="too many"):
        program.step(lib.PYC_OP_OPEN, "open", "/", result=True)


def test_descriptors_are_shared_by_number_and_by_name() -> None:
    program = Program()
    first, named, again = program.share(7), program.share("stdin"), program.share(7)
    assert first == again != named
    result = program.step(lib.PYC_OP_OPEN, "open", "/", result=True)
    assert len({first, named, result}) == 3
    assert (first, named) == (lib.PYC_SLOT_BASE - lib.PYC_SHARED, lib.PYC_SLOT_BASE - lib.PYC_SHARED - 1)
    assert program.pack().shared == (7, "stdin")


def test_early_steps_are_the_first_of_the_host() -> None:
    program = Program()
    program.mkdir("one", "a", host=True)
    program.step(lib.PYC_OP_UMASK, "child")
    program.mark_early()
    program.mkdir("two", "b", host=True)
    found = read(program.pack())
    assert found.early == 1
    assert [step.label for step in found.host] == ["one", "two"]
    assert [step.label for step in found.child] == ["child"]


def test_a_directory_of_the_host_has_its_mode_whatever_the_umask() -> None:
    program = Program()
    program.mkdir("make", "a", mode=0o700, exact=True, host=True)
    program.mkdir("make", "b", mode=0o755)
    found = read(program.pack())
    assert (found.host[0].a, found.host[0].c) == (0o700, 1)
    assert (found.child[0].a, found.child[0].c) == (0o755, 0)


def test_packing_again_gives_a_program_that_means_the_same() -> None:
    program = Program()
    program.uid_map = "0 1 2\n"
    program.step(lib.PYC_OP_CHDIR, "enter", "/x")
    first, second = read(program.pack()), read(program.pack())
    assert (first.host, first.child, first.header[7]) == (second.host, second.child, second.header[7])


# ── replacing ──


@given(st.binary(min_size=32, max_size=32).map(bytes.hex), st.binary(min_size=32, max_size=32).map(bytes.hex))
def test_a_replaced_id_leaves_all_else(old: str, new: str) -> None:
    program = Program()
    program.mkdir("make", old, host=True)
    program.mkdir("make", f"{old}/upper", host=True)
    program.mount("mount", "overlay", [f"upperdir=/r/{old}/upper", "volatile"], host=True)
    program.execute("execute", "sh", ["sh", old], [f"HOSTNAME={old}"])
    program.share(3)
    packed = program.pack()
    replaced = packed.replace(old, new)
    assert len(replaced.data) == len(packed.data)
    assert replaced.shared == packed.shared
    assert old.encode() not in replaced.data or old == new
    assert replaced.replace(new, old) == packed
    found = read(replaced)
    assert [step.s1.decode() for step in found.host[:2]] == [new, f"{new}/upper"]
    assert found.host[2].data == f"upperdir=/r/{new}/upper\0volatile\0".encode()


# ── run without any rights ──


def test_the_core_runs_host_steps_and_gives_their_descriptors(tmp_path: Any) -> None:
    program = Program()
    program.mkdir("make", f"{tmp_path}/a", mode=0o711, host=True)
    program.write("write", f"{tmp_path}/a/f", b"x\0y", open_flags=0o100, mode=0o600, host=True)
    program.step(lib.PYC_OP_OPEN, "open", f"{tmp_path}/a/f", fd=CWD, host=True, result=True)
    (fd,) = program.prepare()
    with open(fd, "rb") as file:  # noqa: PTH123 - a descriptor is not a path
        assert file.read() == b"x\0y"
    assert (tmp_path / "a").stat().st_mode & 0o7777 == 0o711


def test_the_core_names_the_step_that_failed(tmp_path: Any) -> None:
    program = Program()
    program.step(lib.PYC_OP_OPEN, "open the first", str(tmp_path), fd=CWD, a=0o200000, host=True, result=True)
    program.mkdir("make the second", f"{tmp_path}/absent/x", host=True)
    with pytest.raises(StartError) as caught:
        program.prepare()
    assert (caught.value.step, caught.value.errno) == ("make the second", 2)
    assert caught.value.path == f"{tmp_path}/absent/x"


@given(st.binary(max_size=200))
def test_the_core_refuses_what_is_no_program(data: bytes) -> None:
    from pycontainer._ffi import ffi, new_error

    fds = ffi.new("int32_t[]", 1)
    assert lib.pyc_prepare(ffi.from_buffer(data), len(data), fds, 1, new_error()) < 0
