"""Later versions as changes to the one before: they add up, they leave, and a base that is gone is told apart."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from motet.coordinator.federation import Federation
from motet.coordinator.home import CoordinatorHome
from motet.coordinator.intake import Intake
from motet.moe.experts import materialise, read_expert
from motet.protocols.codec import CodecSettings, UpdateReader
from motet.protocols.contribution import Contribution
from motet.protocols.errors import FederationError
from motet.protocols.expert_files import router_weight_name

from .conftest import WriteUpdate, kinds, opened


def applied(update: Path, before: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The definition of an expert, tensor by tensor: what `before` becomes under an update."""
    with UpdateReader(update) as reader:
        return {name: materialise(tensor, torch.from_numpy(reader.tensor(name))) for name, tensor in before.items()}


@pytest.mark.slow
def test_successive_versions(
    home: CoordinatorHome, intake: Intake, medicine: object, write_update: WriteUpdate, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    one = medicine.manifest(home, write_update(first, settings=CodecSettings(method="int8")))
    base = one.open(Contribution).digest
    assert opened(home, intake.admit(one, first, 1)).status == "admitted"
    write_update(second, seed=1, settings=CodecSettings(method="ternary"), base=base)
    two = medicine.manifest(home, second, version=2, base=base)
    assert opened(home, intake.admit(two, second, 1)).status == "admitted"

    newest, anchor = two.open(Contribution).digest, home.anchor
    both = applied(second, applied(first, anchor.ffn()))
    path = intake.expert_file(newest)
    made = read_expert(path, anchor, name="medicine", contribution=newest)
    assert all(torch.equal(made.ffn[name], tensor) for name, tensor in both.items())
    assert any(not torch.equal(applied(second, anchor.ffn())[name], tensor) for name, tensor in both.items())
    with UpdateReader(second) as reader:  # rows travel whole in every version
        assert made.rows.weight[0].tolist() == reader.tensor(router_weight_name(0)).tolist()

    whole = path.read_bytes()
    intake.withdraw(medicine.withdrawal(home, base))
    assert not intake.expert_file(base).exists()
    assert path.read_bytes() == whole
    assert list(home.ledger.standing().active) == [newest]
    late = medicine.manifest(home, second, version=3, base=base)
    said = opened(home, intake.admit(late, second, 1))
    assert (said.status, said.reason) == ("refused", "wrong-base")
    assert "pack against the anchor" in (said.message or "")
    assert opened(home, intake.admit(two, second, 1)).status == "admitted"


@pytest.mark.slow
def test_a_later_version_that_leaves_leaves_no_byte_behind(
    home: CoordinatorHome,
    medicine: object,
    make_owner: Callable[[str], object],
    admit_quickly: Callable[..., str],
    write_update: WriteUpdate,
    tmp_path: Path,
) -> None:
    federation, law = Federation(home), make_owner("law")
    home.enrol(law.request(home))
    admit_quickly(law, seed=3)
    never = federation.assemble()
    base = admit_quickly(medicine, seed=1)
    update = write_update(tmp_path / "u", seed=2, base=base)
    signed = medicine.manifest(home, update, version=2, base=base)
    assert opened(home, federation.intake.admit(signed, update, 1)).status == "admitted"
    newest = signed.open(Contribution).digest
    having = federation.assemble()
    assert {member.contribution for member in having.members} - {newest} == {never.members[0].contribution}
    federation.intake.withdraw(medicine.withdrawal(home, newest))
    shutil.rmtree(never.path)
    after = federation.assemble()
    assert after == never
    assert [each.sha256 for each in after.manifest.files] == [each.sha256 for each in never.manifest.files]


@pytest.mark.slow
def test_a_base_that_was_lost_is_no_refusal(
    home: CoordinatorHome,
    intake: Intake,
    medicine: object,
    admit_quickly: Callable[..., str],
    write_update: WriteUpdate,
    tmp_path: Path,
) -> None:
    base = admit_quickly(medicine, seed=1)
    update = write_update(tmp_path / "u", seed=2, base=base)
    signed = medicine.manifest(home, update, version=2, base=base)
    file = intake.expert_file(base)
    whole = file.read_bytes()
    for harm, says in ((file.unlink, "saw no expert of"), (lambda: file.write_bytes(whole[:-1]), "TensorFileError")):
        harm()
        before = kinds(home)
        with pytest.raises(FederationError, match=says):
            intake.admit(signed, update, 1)
        assert kinds(home) == before
    file.write_bytes(whole)
    assert opened(home, intake.admit(signed, update, 1)).status == "admitted"
