"""deploy/ says nothing that the server does not know: its options, variables, probes and times."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from typer.main import get_command

from openmercury.cli.main import app
from openmercury.server.settings import ServerSettings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SPARE = 5  # seconds for the engine to end when answers are drained
VARIABLES = {f"OPENMERCURY_{name}".upper() for name in ServerSettings.model_fields} | {"OPENMERCURY_MODEL"}


def container() -> list[tuple[str, str]]:
    """(instruction, rest) of each line of the container file."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Containerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def unit() -> dict[str, list[str]]:
    """The [Service] section; a key may stand several times."""
    found: dict[str, list[str]] = {}
    section = (DEPLOY / "openmercury.service").read_text().split("[Service]\n")[1].split("\n[")[0]
    for line in section.splitlines():
        if line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def manifest() -> tuple[Any, Any]:
    """Deployment and Service."""
    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    return deployment, service


def pod() -> Any:
    return manifest()[0]["spec"]["template"]["spec"]


def commands() -> dict[str, list[str]]:
    """Each way's command line, without the program."""
    (start,) = unit()["ExecStart"]
    lines = [json.loads(rest) for word, rest in container() if word == "CMD"]
    images = {f"container {number}": line for number, line in enumerate(lines)}
    return {"systemd": shlex.split(start)[1:], "kubernetes": pod()["containers"][0]["args"], **images}


def environments() -> dict[str, dict[str, str]]:
    """Each way's variables."""
    image = [shlex.split(rest) for word, rest in container() if word == "ENV"]
    listed = {entry["name"]: entry["value"] for entry in pod()["containers"][0]["env"] if "value" in entry}
    return {
        "systemd": dict(entry.split("=", 1) for entry in unit()["Environment"]),
        "kubernetes": listed,
        "container": dict(entry.split("=", 1) for entries in image for entry in entries),
    }


@pytest.mark.parametrize("way", commands())
def test_every_option_is_one_of_serve(way: str) -> None:
    name, *options = commands()[way]
    assert name == "serve"
    command: Any = get_command(app)
    command.commands[name].make_context(name, options)  # raises for an option or a value that is unknown


@pytest.mark.parametrize("way", environments())
def test_every_variable_is_a_setting_with_a_valid_value(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {name: value for name, value in environments()[way].items() if name.startswith("OPENMERCURY_")}
    assert ours
    assert set(ours) <= VARIABLES
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    settings = ServerSettings()
    assert str(settings.keys) == ours["OPENMERCURY_KEYS"]
    assert settings.port == 8000


def test_variables_that_are_told_of_exist() -> None:
    for file in DEPLOY.iterdir():
        told = set(re.findall(r"OPENMERCURY_[A-Z_]+", file.read_text()))
        assert told <= VARIABLES, file.name


def test_probes_answer(http: httpx.Client) -> None:
    (server,) = pod()["containers"]
    (port,) = server["ports"]
    paths = {kind: server[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert paths["liveness"]["path"] == "/health"
    assert paths["readiness"]["path"] == "/ready"
    for probe in paths.values():
        assert probe["port"] == port["name"]
        assert http.get(probe["path"]).status_code == 200
    (check,) = [rest for word, rest in container() if word == "HEALTHCHECK"]
    assert ":8000/health" in check


def test_there_is_time_to_drain() -> None:
    drain = float(environments()["systemd"]["OPENMERCURY_DRAIN_SECONDS"])
    assert float(unit()["TimeoutStopSec"][0]) >= drain + SPARE
    (server,) = pod()["containers"]
    sleep = int(server["lifecycle"]["preStop"]["exec"]["command"][1])
    drain = float(environments()["kubernetes"]["OPENMERCURY_DRAIN_SECONDS"])
    assert pod()["terminationGracePeriodSeconds"] >= sleep + drain + SPARE


def test_keys_come_as_a_file_of_a_secret() -> None:
    (server,) = pod()["containers"]
    (mount,) = [mount for mount in server["volumeMounts"] if mount["name"] == "keys"]
    (volume,) = [volume for volume in pod()["volumes"] if volume["name"] == "keys"]
    assert volume["secret"]["defaultMode"] == 0o440
    assert mount["readOnly"] is True
    assert environments()["kubernetes"]["OPENMERCURY_KEYS"] == f"{mount['mountPath']}/keys.json"
    assert unit()["LoadCredential"] == ["keys.json:/etc/openmercury/keys.json"]
    assert environments()["systemd"]["OPENMERCURY_KEYS"] == "%d/keys.json"


def test_the_service_finds_its_pods_and_sets_no_variable_of_theirs() -> None:
    deployment, service = manifest()
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["ports"][0]["targetPort"] == pod()["containers"][0]["ports"][0]["name"]
    assert pod()["enableServiceLinks"] is False  # OPENMERCURY_PORT=tcp://…


def test_nobody_is_root() -> None:
    (server,) = pod()["containers"]
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert server["securityContext"]["readOnlyRootFilesystem"] is True
    users = {rest for word, rest in container() if word == "USER"}
    assert users == {"{runAsUser}:{runAsGroup}".format(**pod()["securityContext"])}
    assert unit()["DynamicUser"] == ["yes"]
    assert unit()["ProtectSystem"] == ["strict"]


def test_what_the_image_copies_is_there() -> None:
    copied = [
        path for word, rest in container() if word == "COPY" and "--from" not in rest for path in rest.split()[:-1]
    ]
    assert "openmercury" in copied
    for path in copied:
        assert (ROOT / path).exists(), path
