"""Settings: one definition each, one order of precedence, and profiles that agree with them."""

from __future__ import annotations

import dataclasses
import math
import pickle
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inmem import config
from inmem.config import MIB, STORED, Settings, check_stored, load
from inmem.errors import ConfigMismatchError, InvalidInputError

check = settings(derandomize=True, deadline=None, max_examples=100)

PROFILES = Path(__file__).parents[2] / "config"
FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
NUMBERS = [name for name, field in FIELDS.items() if field.metadata["low"] is not None]
CHOICES = [name for name, field in FIELDS.items() if field.metadata["choices"]]
NONE: dict[str, str] = {}


def toml(directory: Path, text: str) -> Path:
    path = directory / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def as_toml(name: str, value: Any) -> str:
    return f"[{FIELDS[name].metadata['section']}]\n{name} = {value!r}\n"


class TestDefinitions:
    def test_every_setting_has_a_reason_a_section_and_a_legal_default(self) -> None:
        for name, field in FIELDS.items():
            assert field.metadata["reason"], name
            assert field.metadata["section"] in ("store", "client"), name
            assert config._checked(name, field.default, "default") == field.default
            assert name in NUMBERS or name in CHOICES or name == "image_dir"

    def test_stored_settings_are_those_of_the_section_store(self) -> None:
        assert set(STORED) == {n for n, f in FIELDS.items() if f.metadata["section"] == "store"}
        assert {"durability", "chain", "quota_bytes"} <= set(STORED)

    def test_nothing_given_is_all_defaults(self) -> None:
        loaded = load(environ=NONE)
        assert loaded.settings == Settings()
        assert set(loaded.origins.values()) == {"default"}
        assert set(loaded.origins) == set(FIELDS)

    def test_settings_are_frozen_and_pickle(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            Settings().chain = "sha256"  # type: ignore[misc]
        loaded = load(arguments={"chain": "sha256"}, environ=NONE)
        assert pickle.loads(pickle.dumps(loaded)) == loaded  # noqa: S301


class TestProfiles:
    def test_default_names_every_setting_with_its_default(self) -> None:
        tables = tomllib.loads((PROFILES / "default.toml").read_text(encoding="utf-8"))
        expected: dict[str, dict[str, Any]] = {}
        for name, field in FIELDS.items():
            expected.setdefault(field.metadata["section"], {})[name] = field.default
        assert tables == expected
        for section, table in tables.items():
            for name, value in table.items():
                assert type(value) is type(expected[section][name]), name
        assert load(PROFILES / "default.toml", environ=NONE).settings == Settings()

    def test_default_says_why_for_every_setting(self) -> None:
        lines = (PROFILES / "default.toml").read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            if "=" in line and not line.startswith("#"):
                assert lines[number - 1].startswith("# "), line

    @pytest.mark.parametrize("path", sorted(PROFILES.glob("*.toml")), ids=lambda path: path.stem)
    def test_every_profile_loads(self, path: Path) -> None:
        loaded = load(path, environ=NONE).settings
        assert loaded.pipeline_window <= loaded.max_in_flight

    def test_test_profile_is_tiny(self) -> None:
        tiny, usual = load(PROFILES / "test.toml", environ=NONE).settings, Settings()
        assert tiny.segment_bytes == 64 * 1024
        assert tiny.quota_bytes == 8 * MIB
        for name in ("batch_limit", "max_in_flight", "pipeline_window", "pipeline_group"):
            assert getattr(tiny, name) * 4 < getattr(usual, name), name
        assert tiny.snapshot_max_age_s < usual.snapshot_max_age_s
        assert (tiny.durability, tiny.chain) == (usual.durability, usual.chain)


class TestPrecedence:
    def test_arguments_over_variables_over_file_over_default(self, tmp_path: Path) -> None:
        path = toml(tmp_path, "[store]\nlinger_s = 1\nmax_readers = 11\nbatch_limit = 11\n")
        environ = {"INMEM_MAX_READERS": "22", "INMEM_BATCH_LIMIT": "22"}
        loaded = load(path, {"batch_limit": 33}, environ)
        assert loaded.settings == Settings(linger_s=1.0, max_readers=22, batch_limit=33)
        assert loaded.origins["linger_s"] == f"file {path}"
        assert loaded.origins["max_readers"] == "variable INMEM_MAX_READERS"
        assert loaded.origins["batch_limit"] == "argument"
        assert loaded.origins["chain"] == "default"

    def test_an_argument_of_none_was_not_given(self) -> None:
        loaded = load(arguments={"chain": None}, environ={"INMEM_CHAIN": "sha256"})
        assert loaded.settings.chain == "sha256"

    def test_the_process_environment_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("INMEM_TIMEOUT_S", "3")
        assert load().settings.timeout_s == 3.0

    @check
    @given(st.data())
    def test_a_legal_value_arrives_from_everywhere_alike(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(NUMBERS))
        meta, kind = FIELDS[name].metadata, type(FIELDS[name].default)
        strategy: Any = st.integers if kind is int else st.floats
        value = data.draw(strategy(meta["low"], meta["high"]))
        by_argument = load(arguments={name: value}, environ=NONE).settings
        by_variable = load(environ={f"INMEM_{name.upper()}": repr(value)}).settings
        assert by_argument == by_variable == Settings(**{name: value})

    def test_a_whole_number_and_a_timedelta_are_durations(self, tmp_path: Path) -> None:
        for given_value in (5, 5.0, timedelta(seconds=5)):
            made = load(arguments={"timeout_s": given_value}, environ=NONE).settings.timeout_s
            assert made == 5.0 and type(made) is float
        from_file = load(toml(tmp_path, "[client]\ntimeout_s = 5\n"), environ=NONE).settings.timeout_s
        assert from_file == 5.0 and type(from_file) is float


class TestRefusals:
    @pytest.mark.parametrize("name", NUMBERS)
    @pytest.mark.parametrize("side", ["low", "high"])
    def test_range(self, name: str, side: str, tmp_path: Path) -> None:
        bound, kind = FIELDS[name].metadata[side], type(FIELDS[name].default)
        outward = -math.inf if side == "low" else math.inf
        beyond = kind(bound) + (-1 if side == "low" else 1) if kind is int else math.nextafter(bound, outward)
        assert load(arguments={name: kind(bound)}, environ=NONE).origins[name] == "argument"
        for source, call in {
            name: lambda: load(arguments={name: beyond}, environ=NONE),
            f"INMEM_{name.upper()}": lambda: load(environ={f"INMEM_{name.upper()}": repr(beyond)}),
            "settings.toml": lambda: load(toml(tmp_path, as_toml(name, beyond)), environ=NONE),
        }.items():
            with pytest.raises(InvalidInputError, match=f"^{name}=.* is outside ") as caught:
                call()
            assert source in str(caught.value)
            assert caught.value.argument == name

    @pytest.mark.parametrize("name", NUMBERS)
    @pytest.mark.parametrize(
        "value",
        [10**5000, -(10**5000), math.nan, math.inf, -math.inf],
        ids=["huge", "-huge", "nan", "inf", "-inf"],
    )
    def test_numbers_that_are_none(self, name: str, value: Any) -> None:
        with pytest.raises(InvalidInputError, match=name):
            load(arguments={name: value}, environ=NONE)

    @pytest.mark.parametrize("name", FIELDS)
    @pytest.mark.parametrize("value", [True, b"1", [], {}, object(), (1,)], ids=lambda v: type(v).__name__)
    def test_type(self, name: str, value: Any) -> None:
        with pytest.raises(InvalidInputError, match=f"^{name} must be of type") as caught:
            load(arguments={name: value}, environ=NONE)
        assert caught.value.argument == name

    @pytest.mark.parametrize("name", NUMBERS)
    @pytest.mark.parametrize(
        "text", ["", "much", "1e", "0x10", "9" * 5000], ids=["empty", "word", "1e", "hex", "long"]
    )
    def test_text_of_a_variable(self, name: str, text: str) -> None:
        with pytest.raises(InvalidInputError, match=f"INMEM_{name.upper()}|{name}="):
            load(environ={f"INMEM_{name.upper()}": text})

    @pytest.mark.parametrize("name", CHOICES)
    def test_choice(self, name: str) -> None:
        listed = ", ".join(FIELDS[name].metadata["choices"])
        with pytest.raises(InvalidInputError, match=f"^{name} must be one of {listed}, not 'fast'"):
            load(arguments={name: "fast"}, environ=NONE)
        for choice in FIELDS[name].metadata["choices"]:
            assert getattr(load(arguments={name: choice}, environ=NONE).settings, name) == choice

    @pytest.mark.parametrize("value", [None, 1])
    def test_an_unknown_argument(self, value: Any) -> None:
        with pytest.raises(InvalidInputError, match="no setting nonsense"):
            load(arguments={"nonsense": value}, environ=NONE)

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("[store]\nnonsense = 1", "no setting store.nonsense"),
            ("[client]\ndurability = 'sync'", "no setting client.durability"),
            ("[store]\ntimeout_s = 1.0", "no setting store.timeout_s"),
            ("[nonsense]\n", "no section nonsense"),
            ("durability = 'sync'", "no section durability"),
            ("store = 1", "no setting store"),
            ("[store", "settings.toml: "),
            ("[store]\nlinger_s = 1\nlinger_s = 2", "settings.toml: "),
        ],
    )
    def test_a_wrong_file(self, tmp_path: Path, text: str, problem: str) -> None:
        with pytest.raises(InvalidInputError, match=problem) as caught:
            load(toml(tmp_path, text), environ=NONE)
        assert caught.value.argument == "config"

    def test_a_file_that_cannot_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "latin").write_bytes(b"# \xe9\n")
        bad: list[Any] = [tmp_path / "absent", tmp_path, tmp_path / "latin", "a\0b", 7]
        for path in bad:
            with pytest.raises(InvalidInputError, match=r"^config ") as caught:
                load(path, environ=NONE)
            assert caught.value.argument == "config"

    def test_a_file_is_utf_8_whatever_the_locale(self, tmp_path: Path) -> None:
        path = toml(tmp_path, "[store]\nimage_dir = '/tmp/é'  # µs\n")
        assert load(path, environ=NONE).settings.image_dir == "/tmp/é"


class TestStored:
    stored = {name: getattr(Settings(), name) for name in STORED}

    @pytest.mark.parametrize("name", STORED)
    def test_a_wish_that_differs_is_refused(self, name: str, tmp_path: Path) -> None:
        default, meta = FIELDS[name].default, FIELDS[name].metadata
        other = meta["choices"][-1] if meta["choices"] else meta["low"] if name in NUMBERS else "/tmp/x"
        other = type(default)(other)
        assert other != default
        for origin, loaded in {
            "argument": load(arguments={name: other}, environ=NONE),
            f"variable INMEM_{name.upper()}": load(environ={f"INMEM_{name.upper()}": str(other)}),
            f"file {tmp_path}": load(toml(tmp_path, as_toml(name, other)), environ=NONE),
        }.items():
            with pytest.raises(ConfigMismatchError) as caught:
                loaded.with_stored(self.stored)
            error = caught.value
            assert (error.setting, error.stored, error.requested) == (name, default, other)
            assert origin in str(error)

    def test_a_default_gives_way_to_what_is_stored(self) -> None:
        stored = self.stored | {"durability": "sync", "quota_bytes": 8 * MIB}
        merged = load(environ=NONE).with_stored(stored)
        assert merged.settings == Settings(durability="sync", quota_bytes=8 * MIB)
        assert merged.origins["durability"] == "stored"
        assert merged.origins["timeout_s"] == "default"

    def test_a_wish_that_agrees_is_fine(self) -> None:
        stored = self.stored | {"durability": "sync"}
        merged = load(arguments={"durability": "sync"}, environ=NONE).with_stored(stored)
        assert merged.settings.durability == "sync"

    def test_settings_of_the_client_are_kept(self) -> None:
        loaded = load(arguments={"timeout_s": 1.0}, environ=NONE).with_stored(self.stored)
        assert loaded.settings.timeout_s == 1.0
        assert loaded.origins["timeout_s"] == "argument"

    def test_what_was_stored_is_checked_when_read_back(self) -> None:
        assert check_stored(dict(self.stored), "the directory") == self.stored
        missing = dict(self.stored)
        missing.pop("chain")
        wrong: list[Any] = [
            None,
            [],
            {},
            missing,
            self.stored | {"nonsense": 1},
            self.stored | {"timeout_s": 1.0},
            self.stored | {"durability": "fast"},
            self.stored | {"quota_bytes": 0},
            self.stored | {"quota_bytes": "1"},
        ]
        for values in wrong:
            with pytest.raises(InvalidInputError, match="the directory"):
                check_stored(values, "the directory")


class TestLimits:
    """Relations that the rest of the package relies on."""

    def test_a_legal_commit_fits_a_message(self) -> None:
        assert config.MAX_COMMIT_BYTES < config.MAX_TRANSACTION_BYTES < config.MAX_MESSAGE_BYTES

    def test_the_largest_value_fits_a_commit(self) -> None:
        from inmem.values import MAX_VALUE_BYTES

        assert MAX_VALUE_BYTES + 2 * config.ENTRY_BYTES < config.MAX_COMMIT_BYTES

    def test_so_many_small_writes_fit_a_commit(self) -> None:
        assert config.MAX_TRANSACTION_OPS * (config.ENTRY_BYTES + 200) < config.MAX_COMMIT_BYTES

    def test_settings_cannot_exceed_the_hard_limits(self) -> None:
        assert FIELDS["batch_limit"].metadata["high"] == config.MAX_BATCH
        assert FIELDS["max_in_flight"].metadata["high"] == config.MAX_IN_FLIGHT
        assert FIELDS["pipeline_window"].metadata["high"] == config.MAX_IN_FLIGHT
        assert FIELDS["quota_bytes"].metadata["high"] < config.MAP_BYTES
        assert FIELDS["session_ttl_s"].metadata["low"] >= config.MIN_SESSION_IDLE_S
