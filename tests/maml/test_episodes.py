"""Which images a task is made of: protocol, statistics, determinism, and clear words for pools
that are too small.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainkit_plugins.maml import episodes
from trainkit_plugins.maml.episodes import Drawn, Episode, EpisodeSampler

from trainkit import Batch

SIZES = [30] * 40


class Numbered:
    """A pool whose batches are the numbers that were asked for."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sizes
        self.names = [f"class {i}" for i in range(len(sizes))]

    def batch(
        self, classes: Sequence[int], images: Sequence[Sequence[int]]
    ) -> list[tuple[int, int, int]]:
        return [
            (target, cls, i)
            for target, (cls, many) in enumerate(zip(classes, images, strict=True))
            for i in many
        ]


def tasks(sampler: EpisodeSampler, count: int = 2000, sizes: Sequence[int] = SIZES) -> list[Drawn]:
    return [sampler.draw(sizes, 0, "train", 0, number) for number in range(count)]


def counts(drawn: Drawn) -> list[int]:
    return [len(images) for images in drawn.support]


@given(
    ways=st.integers(1, 6),
    queries=st.integers(1, 5),
    shots=st.integers(1, 6),
    any_shot=st.booleans(),
    extra=st.lists(st.integers(0, 8), min_size=6, max_size=12),
    number=st.integers(0, 1000),
)
def test_support_and_query_are_disjoint_and_as_large_as_asked(
    ways: int, queries: int, shots: int, any_shot: bool, extra: list[int], number: int
) -> None:
    least = queries + (1 if any_shot else shots)
    sizes = [least + more for more in extra]
    sampler = EpisodeSampler(ways, queries, **{"max_shot" if any_shot else "shots": shots})
    sampler.check(Numbered(sizes))
    drawn = sampler.draw(sizes, "key", number)
    assert len(set(drawn.classes)) == len(drawn.classes) == ways
    for cls, support, query in zip(drawn.classes, drawn.support, drawn.query, strict=True):
        assert set(drawn.classes) <= set(range(len(sizes)))
        assert len(query) == queries
        assert 1 <= len(support) <= shots
        assert any_shot or len(support) == shots
        images = [*support, *query]
        assert len(set(images)) == len(images)
        assert set(images) <= set(range(sizes[cls]))


def test_a_task_is_a_function_of_its_key_alone() -> None:
    sampler = EpisodeSampler(5, 3, max_shot=8)
    first = tasks(sampler, 20)
    assert (
        list(reversed([sampler.draw(SIZES, 0, "train", 0, n) for n in reversed(range(20))]))
        == first
    )
    keys = [
        (0, "train", 0, 1),
        (0, "train", 1, 0),
        (1, "train", 0, 0),
        (0, "test", 0, 0),
        (0, "train", 0, 0),
    ]
    assert len({sampler.draw(SIZES, *key) for key in keys}) == 5
    # Python's own hash differs from process to process.
    assert episodes._seed(("test", 0)) == 1856220386906881733


def test_tasks_of_a_meta_batch_have_classes_of_their_own() -> None:
    """The authors' release draws the classes once for all tasks of a meta-batch."""
    drawn = tasks(EpisodeSampler(5, 1, shots=1), 400)
    meta_batches = [drawn[i : i + 4] for i in range(0, 400, 4)]
    assert all(len({frozenset(task.classes) for task in batch}) == 4 for batch in meta_batches)
    used = [len({cls for task in batch for cls in task.classes}) for batch in meta_batches]
    expected = 40 * (
        1 - (1 - 5 / 40) ** 4
    )  # how many of 40 classes four independent tasks of 5 touch, on average
    assert sum(used) / len(used) == pytest.approx(expected, abs=0.4)


def test_classes_images_and_labels_are_drawn_uniformly() -> None:
    drawn = tasks(EpisodeSampler(5, 2, shots=3))
    by_class = [0] * 40
    by_image = [0] * 30
    lowest_first = 0
    for task in drawn:
        for cls, support in zip(task.classes, task.support, strict=True):
            by_class[cls] += 1
            for image in support:
                by_image[image] += 1
        lowest_first += task.classes[0] == min(task.classes)
    # Counts of 2000 tasks: means 250 and 1000, five standard deviations are 74 and 150.
    assert all(abs(count - 250) < 74 for count in by_class)
    assert all(abs(count - 1000) < 150 for count in by_image)
    assert abs(lowest_first - 400) < 90  # labels follow no order of the classes


def test_any_shot_tasks_are_of_both_kinds_half_the_time_and_shots_uniform() -> None:
    """Methods: a fair coin; then each class by itself, or one number for all; uniform in 1 …
    max_shot.
    """
    drawn = [counts(task) for task in tasks(EpisodeSampler(5, 4, max_shot=15))]
    balanced = sum(len(set(shots)) == 1 for shots in drawn)
    assert (
        abs(balanced - 1000) < 112
    )  # five standard deviations; independent draws agree once in 15^4
    assert all(1 <= n <= 15 for shots in drawn for n in shots)
    for kind in (True, False):
        firsts = [shots[0] for shots in drawn if (len(set(shots)) == 1) is kind]
        share = len(firsts) / 15
        assert all(abs(firsts.count(n) - share) < 5 * share**0.5 for n in range(1, 16))
    imbalanced = [shots for shots in drawn if len(set(shots)) > 1]
    pairs = [(a - 8) * (b - 8) for a, b, *_ in imbalanced]
    assert (
        abs(sum(pairs) / len(pairs)) < 5 * (224 / 12) / len(pairs) ** 0.5
    )  # classes are independent


def test_a_class_that_is_too_small_gives_what_its_queries_leave() -> None:
    sizes = [6, 60, 60]
    drawn = tasks(EpisodeSampler(3, 4, max_shot=20), 300, sizes)
    shots = {cls: [] for cls in range(3)}
    for task in drawn:
        for cls, support in zip(task.classes, task.support, strict=True):
            shots[cls].append(len(support))
    assert set(shots[0]) == {1, 2}
    assert max(shots[1]) == max(shots[2]) == 20


def test_an_episode_holds_what_the_pool_gives() -> None:
    sampler = EpisodeSampler(2, 1, shots=2)
    drawn = sampler.draw([5] * 4, "x")
    episode = sampler.episode(Numbered([5] * 4), "x")
    assert isinstance(episode, Episode)
    assert [row[:2] for row in episode.support] == [(0, drawn.classes[0])] * 2 + [
        (1, drawn.classes[1])
    ] * 2
    assert [row[2] for row in episode.query] == [drawn.query[0][0], drawn.query[1][0]]
    assert Batch._fields == (
        "inputs",
        "targets",
    )  # what real pools give, and what episodes are typed by


@pytest.mark.parametrize(
    ("options", "sizes", "message"),
    [
        ({"shots": 1}, [20] * 4, "5 ways need as many classes, and there are 4"),
        (
            {"shots": 6},
            [20] * 5,
            "class 'class 0' has 20 image(s); 6 shot(s) and 15 queries need 21 of each",
        ),
        (
            {"max_shot": 6},
            [20] * 5 + [15],
            "class 'class 5' has 15 image(s); one shot at least and 15 queries need 16 of each",
        ),
    ],
)
def test_pools_that_are_too_small_are_refused(
    options: dict[str, int], sizes: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match="need") as caught:
        EpisodeSampler(5, 15, **options).check(Numbered(sizes))
    assert str(caught.value) == message


@pytest.mark.parametrize("options", [{}, {"shots": 1, "max_shot": 5}])
def test_shots_are_given_one_way(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="give either shots or max_shot"):
        EpisodeSampler(5, 15, **options)
