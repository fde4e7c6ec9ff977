"""What keras-frcnn left behind: configs as pickles, read here without executing anything, and its fields' names.

`pickle` would import and call what a file names. Here `pickletools` only names the opcodes, and the few that make plain
values are carried out by hand: nothing below could import or call anything, whatever the file says.
"""

import pickletools

from frcnn.files import read_at_most, reading

MOST_BYTES = 1 << 26  # of a pickle; a config of 100 classes has 4,000
_MOST_REPEATED = 1 << 18  # letters of the texts that a pickle repeats
_MOST_STEPS = 1 << 20  # opcodes of a pickle: a class takes two, and a million a second
_MOST_NESTED = 8
_LITERALS = {
    "INT", "LONG", "LONG1", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_STORES, _FETCHES = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"GET", "BINGET", "LONG_BINGET"}
# How many values an opcode takes from the top of the stack; None: all above the last mark.
_TAKES = {
    "EMPTY_LIST": 0, "EMPTY_DICT": 0, "APPEND": 1, "SETITEM": 2, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3,
    "LIST": None, "DICT": None, "TUPLE": None, "APPENDS": None, "SETITEMS": None, "INST": None, "OBJ": None,
    "GLOBAL": 0, "STACK_GLOBAL": 2, "NEWOBJ": 2, "REDUCE": 2, "BUILD": 1,
}  # fmt: skip
_CONFIG = "keras_frcnn.config Config"
_RECONSTRUCTORS = ("copy_reg _reconstructor", "copyreg _reconstructor")
_OBJECTS = ("__builtin__ object", "builtins object")


class OldConfig(dict):
    """The attributes of a pickled `keras_frcnn.config.Config`."""


class Refused(ValueError):
    """A pickle asks for something other than plain values."""


def read_pickle(path):
    """Read a pickle of plain values (dict, list, tuple, str, int, float, bool, None) or of one keras-frcnn Config.

    Args:
        path: a pathlib.Path.

    Returns:
        The plain value, or an `OldConfig`.

    Raises:
        ValueError: the file cannot be read, is damaged, or holds anything else.
    """
    with reading(path, "a pickle"):
        try:
            data = read_at_most(path, MOST_BYTES)
            if data is None:
                raise Refused(f"more than {MOST_BYTES} bytes")
            value = _interpret(data)
            if not _is_plain(dict(value) if isinstance(value, OldConfig) else value, _MOST_NESTED):
                raise Refused("objects, or lists in lists in lists")
            return value
        except Refused as error:
            raise ValueError(f"{path} holds more than plain values ({error}): refused") from None
        except ValueError as error:
            raise ValueError(f"damaged, or not a pickle ({error})") from error


def _interpret(data):
    stack, marks, memo, repeated = [], [], {}, 0
    for step, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if step >= _MOST_STEPS:
            raise Refused(f"more than {_MOST_STEPS} steps")
        name = opcode.name
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            marks.append(len(stack))
        elif name in _STORES:
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in _FETCHES:
            if not isinstance(memo[argument], str):  # a shared list could hold itself, or double with every line
                raise Refused("a list or dict used twice")
            repeated += len(memo[argument])
            stack.append(memo[argument])
        elif name in _TAKES:
            start = marks.pop() if _TAKES[name] is None else len(stack) - _TAKES[name]
            taken = stack[start:]
            del stack[start:]
            _build(name, argument, taken, stack)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise Refused(f"opcode {name}")
        if repeated > _MOST_REPEATED:
            raise Refused("one text used again and again")
    (value,) = stack
    return value


def _build(name, argument, taken, stack):
    """Carry out an opcode with the values that it takes; the rest of the stack lies under them."""
    match name:
        case "EMPTY_LIST" | "LIST":
            stack.append(taken)
        case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
            stack.append(tuple(taken))
        case "EMPTY_DICT" | "DICT":
            stack.append(_pairs(taken))
        case "APPEND" | "APPENDS":
            stack[-1].extend(taken)
        case "SETITEM" | "SETITEMS":
            stack[-1].update(_pairs(taken))
        case "BUILD":
            (state,) = taken
            if type(stack[-1]) is not OldConfig or type(state) is not dict:
                raise Refused("opcode BUILD on something else than a Config")
            stack[-1].update(state)
        case "GLOBAL" | "STACK_GLOBAL":
            stack.append(_known(argument or " ".join(taken)))
        case "INST" | "OBJ":  # as Python 2 wrote classes without a base
            stack.append(_new_config(tuple(taken[name == "OBJ" :]), argument or taken[0]))
        case "NEWOBJ" | "REDUCE":
            stack.append(_new_config(taken[1], taken[0]))


def _pairs(taken):
    if not all(type(key) is str for key in taken[::2]):  # hashing tuples in tuples in tuples would crash Python
        raise Refused("a key that is no text")
    return dict(zip(taken[::2], taken[1::2], strict=True))


def _known(name):
    """A name that stands in the pickle of an old Config, as the text that it is."""
    if name not in (_CONFIG, *_RECONSTRUCTORS, *_OBJECTS):
        raise Refused(name.replace(" ", "."))
    return name


def _new_config(arguments, maker):
    """What `Config()` and `_reconstructor(Config, object, None)` stand for; any other call is refused."""
    by_class = maker == _CONFIG and arguments == ()
    by_function = maker in _RECONSTRUCTORS and arguments in [(_CONFIG, base, None) for base in _OBJECTS]
    if not (by_class or by_function):
        raise Refused("a call that makes no Config")
    return OldConfig()


def _is_plain(value, depth):
    if type(value) is dict:
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value.values())
    if type(value) in (list, tuple):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    return type(value) in (str, int, float, bool, type(None))


# ------------------------------------------------------------------------------------------------ its fields here

# Old name -> section and field here. What is not in this table, in `translate` or in `_FIXED` has no counterpart.
FIELDS = {
    "im_size": ("data", "im_size"),
    "use_horizontal_flips": ("data", "horizontal_flip"),
    "use_vertical_flips": ("data", "vertical_flip"),
    "rot_90": ("data", "rotate_90"),
    "anchor_box_scales": ("model", "anchor_sizes"),
    "rpn_min_overlap": ("rpn", "negative_iou"),
    "rpn_max_overlap": ("rpn", "positive_iou"),
    "num_rois": ("roi", "samples"),
    "classifier_max_overlap": ("roi", "positive_iou"),
    "classifier_regr_std": ("roi", "delta_weights"),
}
_MODEL = {"conventions": "keras_frcnn", "norm": "frozen"}
# What every keras-frcnn has, and is part of these conventions.
_FIXED = {"rpn_stride": 16, "img_channel_mean": [103.939, 116.779, 123.68], "img_scaling_factor": 1.0}
_NO_LIMIT = 100_000  # keras-frcnn had none on the longer side


def translate(old, path):
    """Put an old Config into the words of `frcnn.config`.

    Args:
        old: an `OldConfig`.
        path: where it was read, for messages.

    Returns:
        {"config": values for `frcnn.Config`, "class_names": list of K strings, "weights": the path of its weights}.

    Raises:
        ValueError: a field is missing, or asks for what is not there: another network, anchors that change their area.
    """
    try:
        config = {"data": {"max_size": _NO_LIMIT}, "model": dict(_MODEL), "rpn": {}, "roi": {}}
        for name, (section, field) in FIELDS.items():
            config[section][field] = old[name]
        config["model"]["depth"] = network_depth(old["network"])
        config["model"]["anchor_ratios"] = [_height_to_width(*sides) for sides in old["anchor_box_ratios"]]
        config["rpn"]["delta_weights"] = [old["std_scaling"]] * 4
        for name, only in _FIXED.items():
            if old.get(name, only) != only:
                raise ValueError(f"{name} is {old[name]!r:.80}, and {only} is all that is there")
        return {"config": config, "class_names": _class_names(old["class_mapping"]), "weights": old["model_path"]}
    except KeyError as error:
        raise ValueError(f"{path} is a keras-frcnn config without {error.args[0]}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: a keras-frcnn config that cannot be used here: {error}") from None


def network_depth(network):
    """The ResNet depth that keras-frcnn's `--network` names: "resnet50" -> 50.

    Raises:
        ValueError: another network, VGG above all.
    """
    depth = str(network).removeprefix("resnet")
    if str(network) == depth or not depth.isdecimal():
        raise ValueError(f"network {network!r:.80} is not there: frcnn has ResNets only, such as resnet50")
    return int(depth)


def _height_to_width(width, height):
    if not 0.98 < width * height < 1.02:
        raise ValueError(
            f"anchor_box_ratios holds [{width:g}, {height:g}], which changes the anchor's area, as the oldest versions "
            "did; only anchors of one area a size are there"
        )
    return height / width


def _class_names(mapping):
    if not isinstance(mapping, dict) or set(mapping.values()) != set(range(len(mapping))):
        raise ValueError(f"class_mapping ({mapping!r:.80}) must number the classes from 0")
    *names, last = sorted(mapping, key=mapping.get)
    if last != "bg":
        raise ValueError(f"class_mapping ends with {last!r}, not with bg")
    return names
