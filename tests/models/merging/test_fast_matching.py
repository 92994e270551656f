"""Shortcuts of matching on a CPU give what the plain computation gives."""

import numpy as np
import pytest
import torch

from models.merging import MERGERS, MergeContext
from models.merging.methods.atc import UNION, agglomerated, agglomerated_dense
from models.merging.methods.distances import from_differences, from_products, smallest, squared_distances
from models.merging.methods.pitome import energy
from models.merging.methods.selection import DENSE, SPARSE
from models.merging.methods.sparse import FEW


def drawn(seed: int, batch: int, patches: int, dim: int = 8) -> torch.Tensor:
    return torch.randn(batch, patches, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("form", SPARSE)
@pytest.mark.parametrize("count", [1, 9, 20, 29, 30])
def test_many_images_are_selected_from_as_one_is(form, count):
    """Few and many images are processed by different code."""
    batch = FEW + 3
    unit = torch.nn.functional.normalize(drawn(count, batch, 30), dim=-1)
    unit[0, 5:15] = unit[0, 15:25]  # exact ties
    similarity, size = (unit @ unit.mT + 1) / 2, torch.randint(1, 4, (batch, 30)).float()
    together = SPARSE[form](similarity.numpy(), size.numpy(), count)
    for image in range(batch):
        one = slice(image, image + 1)
        alone = SPARSE[form](similarity[one].numpy(), size[one].numpy(), count)
        assert together[image].tolist() == alone[0].tolist()
    assert together.tolist() == DENSE[form](similarity, size, count).tolist()


@pytest.mark.parametrize("linkage", UNION)
@pytest.mark.parametrize("r", [1, 7, 15, 29])
def test_clusters_join_alike_whether_rows_or_all_of_the_matrix_are_looked_at(linkage, r):
    unit = torch.nn.functional.normalize(drawn(r, 5, 30), dim=-1)
    unit[0, 5:15] = unit[0, 15:25]  # exact ties
    unit[1] = unit[1, 0]  # nothing but ties
    for image, apart in ((2, 3e-4), (3, 1e-3)):  # most distances differ, and many by less than TIE
        unit[image] = torch.nn.functional.normalize(unit[image, :1] + apart * unit[image], dim=-1)
    distance = 1 - unit @ unit.mT
    distance = (distance + distance.mT) / 2
    together = agglomerated_dense(distance, r, linkage)
    assert torch.equal(torch.from_numpy(agglomerated(distance.clone().numpy(), r, linkage)), together)
    for image in range(5):
        alone = agglomerated(distance[image : image + 1].clone().numpy(), r, linkage)
        assert alone[0].tolist() == together[image].tolist()
    assert together[1].tolist() == [0] * (r + 1) + list(range(r + 1, 30))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e15])
def test_distances_from_products_are_those_from_differences(scale):
    metric = scale * (drawn(0, 3, 40) + 10)
    squared, norm = from_products(metric)
    torch.testing.assert_close(squared, from_differences(metric), rtol=2e-6, atol=0)
    torch.testing.assert_close(norm.float(), metric.square().sum(-1))
    assert (squared.diagonal(dim1=1, dim2=2) == 0).all()


@pytest.mark.parametrize("apart", [0.0, 1e-7, 1e-5])
def test_distances_between_patches_that_almost_coincide_are_exact(apart):
    """a^2 + b^2 - 2ab would have no correct digit left. Only the image that has such patches is computed anew."""
    metric = drawn(0, 3, 20, dim=64)
    metric[1, 7] = metric[1, 3] * (1 + apart)
    squared = squared_distances(metric)
    exact = from_differences(metric)
    assert torch.equal(squared[1], exact[1]) and torch.equal(squared[[0, 2]], from_products(metric)[0][[0, 2]])
    assert (squared[1, 7, 3] == 0) == (apart == 0)
    assert torch.equal(smallest(squared, 5), squared.sort(dim=-1).values[..., :5])


@pytest.mark.parametrize("name", ["dpc_knn", "kmedoids", "atc", "facility_location", "pitome", "mctf"])
def test_a_compiled_method_matches_alike(name):
    """In a graph values cannot be looked at, so methods take another way."""
    metric, context = drawn(1, 2, 36), MergeContext(torch.ones(2, 36), torch.rand(2, 36), depth=0.25)
    assign = MERGERS[name].assign
    compiled = torch.compile(assign, fullgraph=True, backend="eager")
    assert torch.equal(compiled(metric, 9, context).index, assign(metric, 9, context).index)


@pytest.mark.parametrize("margin", [0.0, 0.3, 0.9])
def test_energy_is_its_definition(margin):
    """Also where a similarity is the margin itself."""
    similarity = drawn(2, 1, 12, 12).clamp(-1, 1)
    similarity[0, :, :3] = margin
    x = similarity.double().numpy()
    expected = np.where(similarity.numpy() >= np.float32(margin), x, np.exp(x - margin) - 1).mean(-1)
    np.testing.assert_allclose(energy(similarity, margin).numpy(), expected, rtol=1e-5, atol=1e-6)
