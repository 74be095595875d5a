"""One supervisor a file, told by a lock that the kernel keeps; and no harm to what is not a pidfile."""

import errno
import fcntl
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

from dj_queue.runtime import pidfile as pidfiles
from dj_queue.runtime.pidfile import PidfileError, SupervisorRunningError, pidfile
from tests.conftest import wait_until

CODE = """
import sys
from dj_queue.runtime.pidfile import pidfile
with pidfile(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "dj_queue.pid"


@contextmanager
def another(path, code=CODE):
    """A process that holds the file."""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.stdin.close()


def free(path):
    try:
        with pidfile(str(path)):
            return path.read_text() == f"{os.getpid()}\n"
    except SupervisorRunningError:
        return False


def refusal(path):
    with pytest.raises(PidfileError) as caught, pidfile(str(path)):
        pass
    return str(caught.value)


class TestLock:
    def test_refuses_what_is_held_by_name_and_pid(self, path):
        with another(path) as process:
            with pytest.raises(SupervisorRunningError) as caught, pidfile(str(path)):
                pass
            assert str(caught.value) == (
                f"a dj_queue supervisor is already running (pid={process.pid}): it holds"
                f" supervisor_pidfile {str(path)!r}"
            )
        assert not path.exists()

    def test_whatever_the_file_says(self, path):
        with another(path):
            path.write_text("")
            with pytest.raises(SupervisorRunningError, match="pid=unknown"), pidfile(str(path)):
                pass

    def test_no_child_keeps_it(self, path):
        """A task's child may outlive its worker, and that its supervisor."""
        code = CODE.replace(
            "    sys.stdin.read()",
            "    import os\n    if os.fork():\n        os.kill(os.getpid(), 9)\n    sys.stdin.read()",
        )
        with another(path, code) as process:
            process.wait()
            assert path.exists()
            wait_until(lambda: free(path))  # the child may not have run yet

    def test_nor_what_a_task_starts(self, path):
        code = CODE.replace(
            "    sys.stdin.read()",
            "    import os, subprocess\n    subprocess.Popen(['cat'], close_fds=False)\n    os.kill(os.getpid(), 9)",
        )
        with another(path, code) as process:
            process.wait()
            assert free(path)

    def test_one_that_goes_while_we_come_is_no_obstacle(self, path, monkeypatch):
        lock, came = pidfiles._lock, []

        def late(*args):
            if not came:
                came.append(True)
                with another(path):
                    pass
                assert not path.exists()
            lock(*args)

        monkeypatch.setattr(pidfiles, "_lock", late)
        with pidfile(str(path)):
            assert path.read_text() == f"{os.getpid()}\n"
            with pytest.raises(SupervisorRunningError), pidfile(str(path)):
                pass

    def test_what_others_put_in_its_place_stays(self, path):
        with pidfile(str(path)):
            path.unlink()
            path.write_text("theirs")
        assert path.read_text() == "theirs"

    def test_a_lock_on_the_folder_is_no_obstacle(self, path):
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with pidfile(str(path)):
                pass
        finally:
            os.close(descriptor)


class TestWithoutLocks:
    """As on some network file systems: the pid is all there is to go by."""

    @pytest.fixture(autouse=True)
    def unlockable(self, monkeypatch):
        def flock(descriptor, operation):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(pidfiles.fcntl, "flock", flock)

    def test_a_living_pid_is_believed(self, path):
        with subprocess.Popen(["sleep", "60"]) as process:
            path.write_text(f"{process.pid}\n")
            with pytest.raises(SupervisorRunningError, match=f"pid={process.pid}"), pidfile(str(path)):
                pass
            process.kill()
        with pidfile(str(path)):
            assert path.read_text() == f"{os.getpid()}\n"
        assert not path.exists()

    def test_our_own_is_stale(self, path):
        path.write_text(f"{os.getpid()}\n")
        with pidfile(str(path)):
            pass


class TestHarm:
    @pytest.mark.parametrize("content", ["years of notes\n" * 3, "precious", "1e3", "9" * 100])
    def test_what_holds_no_pid_is_left_alone(self, path, content):
        path.write_text(content)
        assert "is a file that holds no pid, and is left alone" in refusal(path)
        assert path.read_text() == content

    @pytest.mark.parametrize("there", [True, False])
    def test_no_link_is_followed(self, path, tmp_path, there):
        target = tmp_path / "victim"
        if there:
            target.write_text("1")
        path.symlink_to(target)
        assert "is no regular file, and no link is followed" in refusal(path)
        assert target.exists() is there
        assert path.is_symlink()

    def test_a_pipe_holds_up_nothing(self, path):
        os.mkfifo(path)
        assert "is no regular file" in refusal(path)

    @pytest.mark.parametrize("name", ["/dev/null", "/dev/tty"])
    def test_a_device(self, name):
        assert "is no regular file" in refusal(name)

    def test_a_folder(self, tmp_path):
        assert "is no regular file" in refusal(tmp_path)

    def test_nothing_is_made_beside_it(self, path, runtime):
        (path.parent / f"{path.name}.probe").write_text("somebody else's")
        running = runtime(options={"supervisor_pidfile": str(path)})
        wait_until(path.exists)
        assert running.stop() == 0
        assert (path.parent / f"{path.name}.probe").read_text() == "somebody else's"
        assert not path.exists()
