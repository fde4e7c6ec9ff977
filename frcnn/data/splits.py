"""Splits of a data set that keep the shares of the classes, and related pictures together."""

import os
import re

import numpy as np


def group_pictures(paths, pattern=None, related=()):
    """Number the groups of pictures that no split may tear.

    Args:
        paths: N paths.
        pattern: None, or a regular expression that is searched for in each file name: pictures whose matches are equal
            (of its first group, if it has one) belong together; one without a match stands alone.
        related: lists of indices that belong together, such as near duplicates.

    Returns:
        (N,) int64, equal numbers within a group.

    Raises:
        ValueError: the pattern is no regular expression, or matches no name.
    """
    by_match = {}
    if pattern is not None:
        try:
            search = re.compile(pattern).search
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        for index, path in enumerate(paths):
            if match := search(os.path.basename(path)):
                by_match.setdefault(match[min(1, match.re.groups)], []).append(index)
        if not by_match:
            raise ValueError(f"no file name matches {pattern!r}; the first is {os.path.basename(paths[0])}")
    parents = np.arange(len(paths))
    for group in (*by_match.values(), *related):
        for index in group[1:]:
            parents[_root(parents, index)] = _root(parents, group[0])
    return np.array([_root(parents, index) for index in range(len(paths))], np.int64)


def split_by_class(records, class_count, share, seed, groups=None):
    """Draw a share of the pictures such that each class has about this share of its boxes in it.

    Iterative stratification (Sechidis et al. 2011) of groups: the class with the fewest boxes left is dealt out first,
    each of its groups to the part that lacks most. We leave the paper where it looks at that one class only: we weigh
    everything that the group holds, pictures and boxes of other classes too, each lack as a share of what the part is
    to have. On real sets this halves the deviations. Pictures without objects count as a class of their own.

    Args:
        records: list of N ImageRecord.
        class_count: K.
        share: of the first part, 0 < share < 1.
        seed: int; the same draws the same.
        groups: (N,) ints as from `group_pictures`, or None for pictures by themselves.

    Returns:
        (N,) bool, which pictures are in the first part. Both parts have a picture.

    Raises:
        ValueError: the share is out of range, or there is only one group.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share of the first part ({share}) must be greater than 0 and less than 1")
    groups = np.arange(len(records)) if groups is None else np.asarray(groups)
    _, units = np.unique(groups, return_inverse=True)
    unit_count = int(units.max(initial=-1)) + 1
    if unit_count < 2:
        raise ValueError(f"{len(records)} picture(s) in {unit_count} group(s) cannot be split")
    counts = np.zeros((unit_count, class_count + 2))  # boxes of each class; pictures without objects; pictures
    for unit, record in zip(units, records):
        counts[unit, :class_count] += np.bincount(record.labels, minlength=class_count)
        counts[unit, class_count:] += (not len(record.labels), 1)
    return _deal(counts, share, np.random.default_rng([seed, unit_count]))[units]


def _deal(counts, share, generator):
    """(units,) bool, the units of the first part; see `split_by_class`."""
    totals = np.maximum(counts.sum(axis=0), 1)
    lacking, wanted = np.outer([share, 1 - share], totals), np.outer([share, 1 - share], totals)
    waiting, first = np.ones(len(counts), bool), np.zeros(len(counts), bool)
    while waiting.any():
        left = counts[waiting, :-1].sum(axis=0)
        rarest = np.where(left > 0, left, np.inf).argmin()
        for unit in generator.permutation(np.flatnonzero(waiting & (counts[:, rarest] > 0))):
            lacks = (lacking / wanted) @ (counts[unit] / totals)
            part = int(lacks[1] > lacks[0])  # so that the second group goes where the first did not
            lacking[part] -= counts[unit]
            first[unit], waiting[unit] = part == 0, False
    return first


def _root(parents, index):
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return index
