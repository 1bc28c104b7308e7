"""Films: how many frames, how fast, in whose words, and never half of one."""

import numpy as np
import pytest
from PIL import Image, ImageSequence

from budwood_flow_rl.film import AFTER, BEFORE, FRAMES, Film, pictures


def filmed(folder, steps, fps=10.0, words=""):
    """The film of ``steps`` frames, each of a grey of its own, played twice as large as a film may be."""

    def play(show):
        for step in range(steps):
            show(np.full((640, 480, 3), step % 256, np.uint8))
        return fps, words

    Film(folder, play).on_run_end(None)
    with Image.open(folder / AFTER) as film:
        return [(np.asarray(frame.convert("L")), frame.info["duration"]) for frame in ImageSequence.Iterator(film)]


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (2, 1), (FRAMES, 1), (FRAMES + 1, 2), (501, 3)])
def test_long_episodes_are_thinned_and_end_with_their_last_frame(tmp_path, steps, every):
    frames = filmed(tmp_path, steps)
    assert len(frames) == -(-steps // every) <= FRAMES
    assert {grey.shape for grey, _ in frames} == {(320, 240)}
    assert [int(grey[0, 0]) for grey, _ in frames][-1] == pytest.approx((steps - 1) % 256, abs=1)
    if steps > 1:
        assert {duration for _, duration in frames} == {100 * every}


def test_a_film_begins_with_the_words_of_its_task(tmp_path):
    filmed(tmp_path, 3, words="touch the grün disc")
    assert [picture.title for picture in pictures(tmp_path)] == ["An episode after training: touch the grün disc"]
    filmed(tmp_path, 3)
    assert [picture.title for picture in pictures(tmp_path)] == ["An episode after training"]
    assert pictures(None) == []


def test_the_film_before_training_is_that_of_the_first_start_and_a_broken_one_is_none(tmp_path):
    def broken(show):
        raise OSError("no display")

    with pytest.raises(OSError, match="no display"):
        Film(tmp_path, broken).on_run_start(None)
    assert list(tmp_path.iterdir()) == []
    played = []

    def play(show):
        played.append(1)
        show(np.zeros((4, 4, 3), np.uint8))
        return 10.0, ""

    for _ in range(2):
        Film(tmp_path, play).on_run_start(None)
    assert len(played) == 1
    assert [path.name for path in tmp_path.iterdir()] == [BEFORE]
