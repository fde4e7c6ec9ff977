"""What the doctor found, for the terminal, for programs and as a page with pictures; each problem with its cure."""

from collections import defaultdict

import numpy as np

from frcnn.data.anchor_recall import IOUS
from frcnn.data.images import read_image
from frcnn.data.readers.problems import printable
from frcnn.html_page import MOST_LETTERS, as_text, draw_on, figure, missing_figure, page, shrink, table

_SAMPLE = 12  # pictures without a problem on the page
_MOST_PICTURES = 48  # with one
_MOST_ON_PAGE = 200  # problems of a kind

CURES = {
    "ambiguous-picture": "keep one of the pictures in the folder, or name it in <filename> with its suffix",
    "anchors-miss": "take the better settings below, if any are found, or a larger data.im_size",
    "bad-encoding": "save the file as UTF-8",
    "bad-number": "write a plain number, such as 12 or 12.5",
    "bit-depth": "set data.bit_depth to that number, in doctor, train and detect alike (a run folder keeps it)",
    "broken-entry": "mend the entry, or delete it",
    "broken-json": "export the annotations anew, or mend the line",
    "broken-xml": "export the annotation anew, or delete the file",
    "class-count": "correct nc, or the names",
    "class-name": "rename the class",
    "clipped-box": "nothing, if the object leaves the picture; else draw the box anew",
    "conflicting-boxes": "keep the box with the right class",
    "degenerate-box": "delete the box, or draw it anew",
    "duplicate-box": "delete one of the two: each would be counted as an object",
    "duplicate-picture": "delete the copies; between training and test they make the score too good",
    "exif-invalid": "nothing, if the picture looks upright; else save it anew",
    "exif-rotation": "look whether the boxes fit (--html); if not, save the picture upright, without the tag",
    "few-boxes": "annotate more, or join the class with another",
    "field-count": "write filepath,x1,y1,x2,y2,class_name (YOLO: class cx cy w h); quote a name that holds a comma",
    "header-line": "delete the header",
    "id-type": "nothing, if the boxes fit (--html); else write all ids as numbers",
    "incomplete-object": "give the object a name and a complete box",
    "leaked-picture": "keep copies on one side: frcnn convert-data --split draws such a split",
    "missing-annotation": "annotate the picture, or take it off the list",
    "missing-class": "name the class",
    "missing-folder": "correct the path in data.yaml, or name the folder above it: --images FOLDER",
    "missing-picture": "correct the path, or say where the pictures are: --images FOLDER",
    "near-duplicate-picture": "keep them on one side of every split: frcnn convert-data --split does",
    "no-boxes": "mark at least one object",
    "not-labelled": "annotate the picture, or delete its task",
    "other-result": "nothing, if rectangles are all that you want; else draw rectangles",
    "other-xml": "nothing, if these files are no annotations",
    "outline": "nothing, if the box around the outline is what you want",
    "outside-box": "draw the box anew: was the picture resized or cut after it was annotated?",
    "outside-folder": "move the pictures into the folder of the data",
    "repeated-class": "give each category one id and one name",
    "repeated-id": "give each picture an id of its own",
    "repeated-picture": "join the two annotations, and correct <filename>",
    "similar-classes": "write the name in one way everywhere",
    "size-differs": "look whether the boxes fit (--html); if not, annotate the picture as it is now",
    "swapped-box": "swap the two corners",
    "tiny-box": "a larger data.im_size, pictures cut into parts, or leave the box out",
    "too-many": "mend the first ones, and run again",
    "turned-box": "nothing, if the box around the turned one is what you want",
    "turned-picture": "turn the picture itself, and annotate it anew",
    "undecodable-picture": "copy the picture again from its source, or delete it",
    "unknown-class": "correct the name; or annotate the class for training too",
    "unknown-key": "nothing, if it is not misspelled",
    "unknown-picture": "correct image_id, or add the picture",
    "unreadable-file": "see that the file is one and may be read",
    "unreadable-picture": "copy the picture again from its source, or save it as JPEG or PNG",
    "unreferenced-picture": "annotate it; one without objects is worth a line too (background)",
    "unused-category": "nothing, if it is no class of its own; else annotate it",
    "xml-entities": "write the text itself in place of the entity",
}


def to_dict(report):
    """Everything as plain values, for JSON."""
    problems = [{**problem._asdict(), "cure": CURES[problem.kind]} for problem in report.problems]
    result = {"source": report.source, **report.statistics, "problems": problems}
    if report.settings:
        settings, chosen = report.better
        result["anchors"] = _settings_dict(report.settings)
        result["better_anchors"] = [_settings_dict(one) | {"use": paste(one)} for one in settings]
        result["suggestion"] = paste(settings[chosen]) if _is_better(report) else None
    return result


def _settings_dict(settings):
    recall = [[None if np.isnan(share) else round(float(share), 4) for share in row] for row in settings.recall]
    return settings._asdict() | {"recall": recall}


def paste(settings):
    """The settings as overrides of the commands."""
    sizes = ",".join(f"{size:g}" for _, sizes in settings.levels for size in sizes)
    ratios = ",".join(f"{ratio:g}" for ratio in settings.ratios)
    sides = f"data.im_size={settings.im_size} data.max_size={settings.max_size}"
    return f"model.anchor_sizes=[{sizes}] model.anchor_ratios=[{ratios}] {sides}"


def to_text(report, most=3):
    """The report for a terminal; of each kind of problem the first few."""
    lines = [_headline(report), *_layout_lines(report)]
    for (severity, kind), problems in _group(report.problems).items():
        lines += ["", f"{severity} {kind} ({len(problems)}). Cure: {CURES[kind]}"]
        lines += [f"  {printable(str(problem))}" for problem in problems[:most]]
        lines += [f"  ... and {len(problems) - most} more"] * (len(problems) > most)
    lines += ["", *_facts(report.statistics), *_table_lines(_class_rows(report))]
    if report.settings:
        lines += ["", _how_found(report), *_table_lines(_anchor_rows(report))]
        lines += ["", paste(_chosen(report))] if _is_better(report) else []
    errors = sum(problem.severity == "error" for problem in report.problems)
    return "\n".join([*lines, "", f"{errors} errors, {len(report.problems) - errors} warnings"])


def _headline(report):
    source, statistics = report.source, report.statistics
    split = f", split {source['split']}" if source["split"] else ""
    counts = f"{statistics['pictures']} pictures, {statistics['boxes']} boxes, {len(report.class_names)} classes"
    return printable(f"{source['path']} ({source['format']}{split}): {counts}")


def _layout_lines(report):
    layout = report.source["layout"]
    return [printable(f"layout: {layout}")] if layout else []


def _group(problems):
    groups = defaultdict(list)
    for problem in problems:
        groups[problem.severity, problem.kind].append(problem)
    return groups


def _facts(statistics):
    if not statistics["pictures"]:
        return ["no picture can be used"]
    sizes = statistics["most_frequent_sizes"]
    shown = ", ".join(f"{size['width']}x{size['height']} ({size['pictures']})" for size in sizes)
    wide, boxes = statistics["picture_height_to_width"], statistics["boxes_a_picture"]
    return [
        f"pictures: most are {shown}; height / width {wide['smallest']:g} to {wide['largest']:g}",
        f"boxes a picture: {boxes['smallest']:g} to {boxes['largest']:g}, median {boxes['median']:g}; "
        f"{statistics['background_only']} pictures without any",
    ]


def _class_rows(report):
    """The classes as a table of strings, its first row the titles."""
    rows = [("class", "boxes", "share", "pictures", "size, px (5 %, median, 95 %)", "height / width")]
    if report.settings:
        rows[0] += tuple(f"anchor IoU >= {iou}" for iou in IOUS)
    for label, entry in enumerate(report.statistics["classes"]):
        spreads = [_show_spread(entry[name]) for name in ("box_size", "box_height_to_width")]
        share = f"{entry['boxes'] / max(1, report.statistics['boxes']):.1%}"
        recall = report.settings.recall[label] if report.settings else ()
        name = printable(entry["name"])[:MOST_LETTERS]
        rows.append((name, str(entry["boxes"]), share, str(entry["pictures"]), *spreads, *map(_percent, recall)))
    return rows


def _show_spread(spread):
    return " ".join(f"{spread[part]:.3g}" for part in ("low", "median", "high")) if spread else "-"


def _anchor_rows(report):
    """The present settings and the better ones, the one to take marked; mean recalls over classes, lowest ones too."""
    titles = ("data.im_size", "pixels", *(f"mean IoU >= {iou}" for iou in IOUS), "worst class IoU >= 0.5", "anchors")
    rows = [titles]
    others = [settings for settings in report.better[0] if not settings.has_values_of(report.settings)]
    for settings in (report.settings, *others):
        mean, worst = np.nanmean(settings.recall, axis=0), np.nanmin(settings.recall[:, 0])
        mark = " (now)" if settings is report.settings else " <-" if settings is _chosen(report) else ""
        pixels = f"x{(settings.im_size / report.settings.im_size) ** 2:.2g}"
        anchors = paste(settings).partition(" data.")[0].replace("model.anchor_", "")
        rows.append((f"{settings.im_size}{mark}", pixels, *map(_percent, mean), _percent(worst), anchors))
    return rows


def _percent(share):
    return "-" if np.isnan(share) else f"{share:.1%}"


def _chosen(report):
    settings, index = report.better
    return settings[index]


def _is_better(report):
    return not _chosen(report).has_values_of(report.settings)


def _how_found(report):
    if not _is_better(report):
        return "no anchors are found, as many as now, that meet more boxes: keep those of the config, or take more"
    before, after = (np.nanmean(settings.recall, axis=0) for settings in (report.settings, _chosen(report)))
    gains = ", ".join(f"by {iou} {_percent(a)} -> {_percent(b)}" for iou, a, b in zip(IOUS, before, after))
    how = "k-means of the boxes, then one size or ratio at a time; counted over all boxes"
    return f"anchors that meet more boxes, as many as now; mean over classes: IoU {gains} ({how})"


def _table_lines(rows):
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def to_html(report):
    """One page, see `frcnn.html_page`."""
    parts = [f"<h1>{as_text(_headline(report))}</h1>", *(f"<p>{as_text(line)}</p>" for line in _layout_lines(report))]
    for (severity, kind), problems in _group(report.problems).items():
        items = "".join(f"<li>{as_text(problem)}</li>" for problem in problems[:_MOST_ON_PAGE])
        more = f"<p>... and {len(problems) - _MOST_ON_PAGE} more</p>" if len(problems) > _MOST_ON_PAGE else ""
        cure = f"<small>Cure: {as_text(CURES[kind])}</small>"
        title = f"<span class={severity}>{severity}</span> {kind} ({len(problems)}) {cure}"
        parts.append(f"<h3>{title}</h3><ul>{items}</ul>{more}")
    facts = "".join(f"<p>{as_text(fact)}</p>" for fact in _facts(report.statistics))
    parts.append(f"<h2>What decides a recipe</h2>{facts}{table(_class_rows(report))}")
    if report.settings:
        use = f"<pre>{as_text(paste(_chosen(report)))}</pre>" if _is_better(report) else ""
        parts.append(f"<p>{as_text(_how_found(report))}</p>{table(_anchor_rows(report))}{use}")
    about = _problems_by_picture(report)
    troubled = [record for record in report.records if record.path in about][:_MOST_PICTURES]
    sound = [record for record in report.records if record.path not in about]
    sample = sound[:: max(1, len(sound) // _SAMPLE)][:_SAMPLE]
    for title, records in (("Pictures with a problem", troubled), ("Pictures without", sample)):
        figures = "".join(_figure(record, report, about[record.path]) for record in records)
        parts.append(f"<h2>{title}</h2>{figures}" * bool(records))
    return page("frcnn doctor", parts)


def _problems_by_picture(report):
    """A dict from a picture's path to the kinds of its problems: those about it, its boxes or its annotation file."""
    owners = {record.path: record.path for record in report.records}
    sources = defaultdict(set)
    for record in report.records:
        sources[record.source].add(record.path)
    owners |= {source: next(iter(paths)) for source, paths in sources.items() if len(paths) == 1}
    about = defaultdict(list)
    for problem in report.problems:
        path = owners.get(problem.file) or owners.get(problem.message.partition(": ")[0])
        if path:
            about[path].append(problem.kind)
    return about


def _figure(record, report, kinds):
    try:
        small = shrink(read_image(record.path, report.source["bit_depth"]))
    except ValueError as error:
        return missing_figure(error)
    drawn = draw_on(small, record.size, record.boxes, record.labels, report.class_names)
    return figure(drawn, f"{record.path} {', '.join(sorted(set(kinds)))}")
