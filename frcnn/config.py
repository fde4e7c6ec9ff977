"""Configs in files and on the command line: read, checked, described, saved; the tree itself is `frcnn.schema`.

A config is read from YAML, changed by `key=value` overrides, and saved with a run as YAML (for people) and as a pickle
of plain values (for those who come from keras-frcnn). It travels only as far as the `build_*` functions: below them,
everything takes keyword arguments.
"""

import difflib
import pickle
from pathlib import Path

import yaml
from pydantic import ValidationError

from frcnn.files import MOST_YAML_BYTES, printable, read_at_most, read_yaml, reading, replacing
from frcnn.legacy import OldConfig, read_pickle, translate
from frcnn.schema import Config

KINDS = {"detector": "frcnn detect", "classifier": "frcnn classify predict"}  # models, and the commands that run them
MOST_ERRORS = 5  # of a wrong config are printed; one mistake often causes several


def load_config(path=None, overrides=()) -> Config:
    """Read a YAML file, apply overrides and check every value.

    Args:
        path: a YAML file with the sections of `Config`; what it leaves out keeps its default. None: all defaults.
        overrides: strings "section.field=value", applied in order after the file; the value is read as YAML.

    Raises:
        ValueError: the file cannot be read, or a field is unknown or wrong; names the file or the override.
    """
    return _load({} if path is None else _read_yaml(path), overrides, "config" if path is None else str(path))


def _load(values, overrides, source):
    origins = {}
    for override in [overrides] if isinstance(overrides, str) else overrides:
        section, name, value = _parse_override(override)
        if isinstance(values.setdefault(section, {}), dict):  # a section that is no mapping is reported below
            values[section][name] = value
            origins[section, name] = f"override '{override}'"
    return _validate(values, source, origins)


def with_overrides(config, overrides) -> Config:
    """A config with some fields changed, checked again; `overrides` and errors as in `load_config`."""
    return _load(config.model_dump(mode="json"), overrides, "config")


def save_config(config, folder, class_names, kind="detector"):
    """Write config.yaml (for people, each field with its meaning) and config.pickle into `folder`, each atomically.

    Args:
        config: a Config.
        folder: where to write; made when missing.
        class_names: K strings, in the order of the labels.
        kind: of the model, a key of `KINDS`.
    """
    with replacing(Path(folder, "config.yaml")) as file:
        file.write(_to_yaml(config))
    save_pickle(config, Path(folder, "config.pickle"), class_names, kind=kind)


def save_pickle(config, path, class_names, weights=None, kind="detector"):
    """Write {"config": {...}, "class_names": [...], "weights": path or None, "kind": kind} as a pickle (protocol 2).

    Args:
        config, class_names, kind: as in `save_config`.
        path: the file.
        weights: the weights that go with it, named by their place beside the pickle or else absolutely; None: those of
            the run folder that the pickle lies in.
    """
    if weights is not None:
        weights = Path(weights).absolute()
        weights = weights.name if weights.parent == Path(path).absolute().parent else str(weights)
    names = [str(name) for name in class_names]
    plain = {"config": config.model_dump(mode="json"), "class_names": names, "weights": weights, "kind": kind}
    with replacing(path, binary=True) as file:
        pickle.dump(plain, file, 2)


def load_run_config(path, kind=None) -> tuple[Config, tuple[str, ...]]:
    """The config and the class names of a run; arguments and errors as in `load_pickle`."""
    return load_pickle(path, kind)[:2]


def load_pickle(path, kind=None) -> tuple[Config, tuple[str, ...], Path | None]:
    """Read a config.pickle, ours or keras-frcnn's, without executing anything that stands in it.

    Args:
        path: the pickle, or the run folder that holds config.pickle.
        kind: of the model that is wanted, a key of `KINDS`; None: any.

    Returns:
        (Config, class names in the order of the labels, the weights file that the pickle names or None). Relative
        names count from the pickle's folder; keras-frcnn's are also looked for in the working directory.

    Raises:
        ValueError: the file is missing, damaged, of the other kind, or holds anything but the plain values of a config.
    """
    path = Path(path)
    path = path / "config.pickle" if path.is_dir() else path
    with reading(path, "a config"):
        return _understand(read_pickle(path), path, kind)


def _understand(plain, path, kind):
    """What `load_pickle` returns, of what is in the pickle."""
    places = (path.parent,)
    if isinstance(plain, OldConfig):
        plain, places = translate(plain, path), (path.parent, Path())
    if not isinstance(plain, dict) or not isinstance(plain.get("config"), dict):
        raise ValueError(f'{path}: expected {{"config": {{...}}, "class_names": [...]}}, as save_config writes it')
    found = "classifier" if plain.get("kind") == "classifier" else "detector"
    if kind not in (None, found):
        raise ValueError(f"{path} is of a {found}, not of a {kind}: {KINDS[found]} takes it")
    class_names, weights = plain.get("class_names"), plain.get("weights")
    if not isinstance(class_names, list) or not all(isinstance(name, str) for name in class_names):
        raise ValueError(f"{path}: class_names ({class_names!r:.80}) must be a list of strings")
    if not isinstance(weights, str | None):
        raise ValueError(f"{path}: weights ({weights!r:.80}) must be the path of a file")
    if weights is not None:
        weights = next((place / weights for place in places if (place / weights).is_file()), path.parent / weights)
    return _validate(plain["config"], str(path)), tuple(class_names), weights


def describe_config(config) -> str:
    """The effective config as a table, one line per field: dotted name, value, meaning."""
    rows = [(f"{section}.{name}", value, meaning) for section, name, value, meaning in _walk(config)]
    wide_name, wide_value = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"{name:<{wide_name}}  {value:<{wide_value}}  {meaning}" for name, value, meaning in rows)


def changed_fields(config) -> dict:
    """{"train.epochs": "5", ...}: the fields that differ from the defaults of their architecture, values as YAML."""
    usual = load_config(None, [f"model.architecture={config.model.architecture}"])
    usual = {(section, name): value for section, name, value, _ in _walk(usual)}
    usual["model", "architecture"] = Config().model.architecture
    return {f"{section}.{name}": value for section, name, value, _ in _walk(config) if value != usual[section, name]}


def _sections():
    return {name: field.annotation for name, field in Config.model_fields.items()}


def _walk(config):
    """Yield (section, field, value as YAML on one line, meaning) of every field, in order."""
    for section, values in config.model_dump(mode="json").items():
        fields = _sections()[section].model_fields
        for name, value in values.items():
            text = yaml.safe_dump([value], default_flow_style=True, width=float("inf")).strip()[1:-1]
            yield section, name, text, fields[name].description


def _to_yaml(config):
    lines = ["# The config of a run: edit a copy and train with --config. Detection reads config.pickle beside it."]
    for section, name, value, meaning in _walk(config):
        if name == next(iter(_sections()[section].model_fields)):
            about = _sections()[section].__doc__  # PYTHONOPTIMIZE=2 leaves it out
            lines += ["", *([f"# {about}"] if about else []), f"{section}:"]
        lines.append(f"  {name}: {value}  # {meaning}")
    return "\n".join(lines) + "\n"


def _read_yaml(path):
    with reading(path, "a config"):
        text = read_at_most(path, MOST_YAML_BYTES)
        if text is None:
            raise ValueError(f"more than {MOST_YAML_BYTES >> 20} MiB is no config")
        values = read_yaml(text, path, yaml.SafeLoader)
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected sections ({', '.join(_sections())}), got {values!r:.80}")
    # "train:" with all its lines commented out is an empty section, not a wrong one.
    return {section: {} if fields is None else fields for section, fields in values.items()}


def _parse_override(override):
    """("train", "epochs", 5) from "train.epochs=5"."""
    label = f"override '{override}'"
    name, equals, text = str(override).partition("=")
    section, _, field = (name := name.strip()).partition(".")
    if not equals:
        raise ValueError(f"{label}: expected section.field=value, as in train.epochs=5")
    if name in _sections():
        example = next(iter(_sections()[name].model_fields))
        raise ValueError(f"{label}: {name} is a section; set one of its fields, as in {name}.{example}=...")
    if section not in _sections() or field not in _sections()[section].model_fields:
        raise ValueError(_unknown(name, label))
    return section, field, read_yaml(text, label, yaml.SafeLoader)


def _validate(values, source, origins=None):
    """A Config from nested plain values; `origins` maps (section, field) to the override that set it."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = [_explain(problem, source, origins or {}) for problem in error.errors()]
    if len(problems) > MOST_ERRORS:
        problems[MOST_ERRORS:] = [f"... and {len(problems) - MOST_ERRORS} more"]
    raise ValueError("\n".join(map(printable, problems)))


def _explain(problem, source, origins):
    """One pydantic error as one sentence: where, which field, its value, what is allowed."""
    location, kind = problem["loc"], problem["type"]
    source = origins.get(location[:2], source)
    name = ".".join(str(part) for part in location[:2])
    element = "".join(f"[{part}]" for part in location[2:])
    if kind in ("extra_forbidden", "invalid_key"):
        return _unknown(name, source)
    if kind == "value_error":  # a rule between two fields, which names both
        changed = [text for (section, _), text in origins.items() if section == name]
        return f"{', '.join([source, *changed])}: {problem['ctx']['error']}"
    if kind == "model_type":
        fields = _sections()[name].model_fields if name in _sections() else _sections()
        return (
            f"{source}: {name} ({problem['input']!r:.80}) must be a section with fields of its own: {', '.join(fields)}"
        )
    if kind == "missing":
        return f"{source}: {name} ({problem['input']!r:.80}) has too few items: {element} is missing"
    allowed = problem["msg"].partition(", unable to parse")[0].replace(" after validation", "")
    allowed = allowed.replace("valid tuple", "list").replace("Input should", "must").replace("Tuple should", "must")
    return f"{source}: {name}{element} ({problem['input']!r:.80}) {allowed}"


def _unknown(name, source):
    """Say that a dotted name is unknown, and which known one was probably meant: of its own section first."""
    section, _, field = name.rpartition(".")
    tree = {part: {field: f"{part}.{field}" for field in fields.model_fields} for part, fields in _sections().items()}
    siblings = tree.get(section) or {part: part for part in tree}
    everywhere = {field: dotted for fields in reversed(tree.values()) for field, dotted in fields.items()}
    for known in (siblings, everywhere):
        for match in difflib.get_close_matches(field, known, n=1):
            return f"{source}: unknown field {name}; did you mean {known[match]}?"
    return f"{source}: unknown field {name}; known here: {', '.join(siblings)}"
