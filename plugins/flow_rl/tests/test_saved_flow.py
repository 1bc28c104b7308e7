"""A flow in a folder: bit for bit back, and refused when it is damaged or another one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from budwood.api import CheckpointError
from budwood_flow_rl.evaluation import _actor
from budwood_flow_rl.families import FAMILIES, sample
from budwood_flow_rl.normalisation import MinMax, Normalisation
from budwood_flow_rl.saved import FACTS, WEIGHTS, Meta, load_flow, save_flow


def save(folder: Path, family: str = "rectified", seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    field = FAMILIES[family](obs_dim=5, horizon=4, action_dim=2, hidden=(16,))
    rng = np.random.default_rng(0)
    scaling = Normalisation(MinMax.of(rng.normal(size=(9, 5))), MinMax.of(rng.normal(size=(9, 2))))
    save_flow(folder, field, scaling, Meta(3, "Hopper-v5", {"a": 0.1}, {"demonstrations": {"mean_return": 631.25}}))
    return field


@pytest.mark.parametrize("family", FAMILIES)
def test_a_flow_comes_back_bit_for_bit(tmp_path: Path, family: str) -> None:
    field = save(tmp_path, family)
    back = load_flow(tmp_path)
    assert type(back.field) is type(field)
    assert back.field.arguments() == field.arguments()
    for name, value in field.state_dict().items():
        assert torch.equal(back.field.state_dict()[name], value), name
    o, x0 = torch.randn(7, 5), torch.randn(7, 4, 2)
    assert torch.equal(sample(back.field, o, 4, x0), sample(field, o, 4, x0))
    assert back.meta == Meta(3, "Hopper-v5", {"a": 0.1}, {"demonstrations": {"mean_return": 631.25}})
    first = (tmp_path / FACTS).read_bytes(), (tmp_path / WEIGHTS).read_bytes()
    save_flow(tmp_path, back.field, back.normalisation, back.meta)
    assert ((tmp_path / FACTS).read_bytes(), (tmp_path / WEIGHTS).read_bytes()) == first


def test_it_acts_on_raw_observations_with_scaled_actions_of_its_chunk(tmp_path: Path) -> None:
    save(tmp_path)
    flow = load_flow(tmp_path)
    seen = np.random.default_rng(3).normal(2, 3, size=(6, 5)).astype(np.float32)
    o = flow.normalisation.observations.scale(torch.from_numpy(seen))
    x0 = torch.randn((6, 4, 2), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        wanted = sample(flow.field, o, 3, x0)[:, :3]
    assert np.array_equal(_actor(flow, 3, seed=7)(seen), wanted.numpy())


def test_nothing_in_it_is_a_pickle(tmp_path: Path) -> None:
    save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [FACTS, WEIGHTS]
    assert json.loads((tmp_path / FACTS).read_text())["horizon"] == 4


def test_a_flow_is_refused_where_another_is_wanted(tmp_path: Path) -> None:
    save(tmp_path)
    flow = load_flow(tmp_path)
    flow.require("here", family="rectified", horizon=4, chunk=3, obs_dim=5, action_dim=2, env_id="Hopper-v5")
    flow.require("here", family=None, env_id=None)
    with pytest.raises(CheckpointError) as error:
        flow.require("plugins.flow_rl.init", family="shortcut", horizon=8, obs_dim=17, env_id="Ant-v5")
    said = str(error.value)
    assert said == (
        f"plugins.flow_rl.init: {tmp_path} was made for Hopper-v5, 5 observations, family rectified, horizon 4, and not for "
        "Ant-v5, 17 observations, family shortcut, horizon 8. "
        "Name the folder of a flow that was pre-trained for this, or change the setting."
    )
    with pytest.raises(CheckpointError, match=r"was made for 2 actions, and not for 1 action\. Leave it out\.$"):
        flow.require("here", do="Leave it out", action_dim=1, obs_dim=5)


def test_a_folder_that_is_misspelt_names_the_flow_beside_it(tmp_path: Path) -> None:
    save(tmp_path / "pend")
    save(tmp_path / "hopper")
    (tmp_path / "pendd2").mkdir()
    with pytest.raises(CheckpointError, match=rf"/pendd: .*Did you mean {tmp_path / 'pend'}\?$"):
        load_flow(tmp_path / "pendd")
    for other in ("walker", "pendd2"):
        with pytest.raises(CheckpointError, match="Pre-train it with: budwood flow-rl pretrain"):
            load_flow(tmp_path / other)


def change(path: Path, **facts: object) -> None:
    """Change the facts as somebody would who also knows how to make the digest right."""
    from budwood_flow_rl.saved import _digest

    data = {**json.loads(path.read_text()), **facts}
    data.pop("sha256")
    path.write_text(json.dumps({**data, "sha256": _digest(data)}))


def test_damage_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_flow(tmp_path / "nowhere")
    save(tmp_path)
    facts, weights = (tmp_path / FACTS).read_text(), (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / FACTS).write_text(facts.replace('"chunk": 3', '"chunk": 2'))
    with pytest.raises(CheckpointError, match=r"flow.json was altered"):
        load_flow(tmp_path)
    (tmp_path / FACTS).write_text(facts[:40])
    with pytest.raises(CheckpointError, match=r"flow.json is not JSON"):
        load_flow(tmp_path)
    (tmp_path / FACTS).write_text("[]")
    with pytest.raises(CheckpointError, match=r"flow.json was altered"):
        load_flow(tmp_path)
    (tmp_path / FACTS).write_text(facts)
    (tmp_path / WEIGHTS).write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"flow.safetensors was altered"):
        load_flow(tmp_path)


def test_weights_of_another_pretraining_are_told(tmp_path: Path) -> None:
    save(tmp_path / "a")
    save(tmp_path / "b", seed=1)
    (tmp_path / "b" / WEIGHTS).rename(tmp_path / "a" / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"not the one that flow.json was written with"):
        load_flow(tmp_path / "a")


def test_weights_that_do_not_fit_the_family_are_told(tmp_path: Path) -> None:
    save(tmp_path)
    change(tmp_path / FACTS, family="shortcut")
    with pytest.raises(CheckpointError, match="do not fit the family shortcut"):
        load_flow(tmp_path)
    change(tmp_path / FACTS, family="meanflow")
    with pytest.raises(CheckpointError, match="family 'meanflow' is unknown; known are rectified, shortcut"):
        load_flow(tmp_path)
    change(tmp_path / FACTS, format=2)
    with pytest.raises(CheckpointError, match="format 2"):
        load_flow(tmp_path)
