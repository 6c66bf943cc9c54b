"""The bench itself: Docker works on it with its own volumes, and nothing is left of it."""

from __future__ import annotations

from pathlib import Path

from tests.docker.engine import Engine


def test_volumes_of_docker_itself_outlive_containers_and_reboots(engine: Engine) -> None:
    engine.docker("volume", "create", "web")
    engine.run("web:/data", sh="echo hello > /data/a")
    engine.detached("busy", "web:/data")
    assert engine.exec("busy", "cat /data/a") == "hello"
    assert "volume is in use" in engine.refused("volume", "rm", "web")
    engine.machine.power_off()
    engine.machine.boot()
    engine.start()
    assert engine.docker("volume", "ls", "--format", "{{.Name}}") == "web"
    assert engine.run("web:/data", sh="cat /data/a") == "hello"


def test_containers_outlive_a_killed_engine(engine: Engine) -> None:
    engine.detached("busy", sh="echo up > /up")
    engine.stop()
    engine.start("--live-restore")
    engine.docker("start", "busy")
    engine.kill()
    engine.start("--live-restore")
    assert engine.docker("ps", "--format", "{{.Names}}") == "busy"
    assert engine.exec("busy", "cat /up") == "up"


def test_a_machine_sees_neither_processes_nor_files_of_this_one(engine: Engine) -> None:
    machine = engine.machine
    assert "pytest" not in machine.run("cat", "/proc/1/cmdline")
    machine.shell("touch /etc/fusevol-was-here /var/lib/fusevol-was-here /run/fusevol-was-here")
    assert [path for path in ("/etc", "/var/lib", "/run") if Path(path, "fusevol-was-here").exists()] == []
    assert machine.run("cat", "/proc/sys/kernel/random/boot_id") != Path("/proc/sys/kernel/random/boot_id").read_text()
