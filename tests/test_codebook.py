"""The codebook in training: where it starts, how it follows the latents, how unused codes come back."""

import pytest
import torch

from vqgpt.tokens.arrays import code_statistics
from vqgpt.vqgan.architecture import VQGANConfig
from vqgpt.vqgan.codebook import Codebook, EMACodebook, kmeans, nearest_codes, random_rows, start_codebook


def codebook_of(n_embed: int, embed_dim: int, **changes) -> Codebook:
    config = VQGANConfig(
        image_channels=1,
        channels=32,
        ch_mult=(1,),
        num_res_blocks=1,
        attn_levels=(),
        z_channels=8,
        double_z=False,
        n_embed=n_embed,
        embed_dim=embed_dim,
        **changes,
    )
    return Codebook(config)


def vectors_of(latents):
    return latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])


def test_the_ema_codebook_follows_the_mean_of_its_latents():
    codebook = codebook_of(2, 1)
    codebook.set_vectors(torch.tensor([[0.0], [10.0]]))
    ema = EMACodebook(codebook, decay=0.5, revive_below=0.0, vectors_per_step=2)
    latents = torch.tensor([1.0, 3.0, 8.0, 8.0]).view(1, 1, 2, 2)
    ema.update(latents, codebook.latents_to_codes(latents).flatten())
    torch.testing.assert_close(codebook.vectors(), torch.tensor([[4 / 3], [26 / 3]]))


def test_an_unused_code_is_put_onto_a_latent_with_fresh_statistics():
    codebook = codebook_of(4, 1)
    codebook.set_vectors(torch.tensor([[0.0], [1.0], [100.0], [200.0]]))
    ema = EMACodebook(codebook, decay=0.5, revive_below=0.1, vectors_per_step=128)
    latents = torch.rand(8, 1, 4, 4)
    for _ in range(6):
        ema.update(latents, codebook.latents_to_codes(latents).flatten())
    assert codebook.vectors().max() <= 1
    assert code_statistics(codebook.latents_to_codes(latents).numpy(), 4).used_codes == 4
    torch.testing.assert_close(ema.sums / ema.counts[:, None], codebook.vectors())


def test_without_revival_an_unused_code_stays_where_it_is():
    codebook = codebook_of(2, 1)
    codebook.set_vectors(torch.tensor([[0.0], [100.0]]))
    ema = EMACodebook(codebook, decay=0.5, revive_below=0.0, vectors_per_step=16)
    latents = torch.rand(1, 1, 4, 4)
    for _ in range(60):
        ema.update(latents, codebook.latents_to_codes(latents).flatten())
    assert codebook.vectors()[1].item() == pytest.approx(100.0)


def test_only_the_used_codes_move():
    codebook = codebook_of(6, 2, used_codes=3)
    codebook.used.copy_(torch.tensor([5, 1, 2]))
    before = codebook.embedding.weight.clone()
    ema = EMACodebook(codebook, decay=0.5, revive_below=0.1, vectors_per_step=32)
    latents = torch.randn(2, 2, 4, 4)
    ema.update(latents, codebook.latents_to_codes(latents).flatten())
    moved = (codebook.embedding.weight != before).any(dim=1)
    assert moved.nonzero().flatten().tolist() == [1, 2, 5]


def test_random_rows_are_different_as_long_as_there_are_enough():
    rows = torch.arange(10.0)[:, None]
    assert len(random_rows(rows, 10).unique()) == 10
    assert len(random_rows(rows, 25)) == 25


def test_kmeans_finds_clusters_that_are_far_apart():
    torch.manual_seed(3)
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0], [50.0, 50.0]])
    vectors = (centres[:, None] + torch.randn(4, 100, 2)).flatten(0, 1)
    spread = min(
        (vectors - means[nearest_codes(vectors, means)]).square().sum(dim=1).mean()
        for means in (kmeans(vectors, 4, spherical=False) for _ in range(8))
    )
    assert spread < 3  # 2 is the variance within a cluster


def test_kmeans_of_directions_gives_directions():
    vectors = torch.nn.functional.normalize(torch.randn(200, 5), dim=1)
    means = kmeans(vectors, 7, spherical=True)
    torch.testing.assert_close(means.norm(dim=1), torch.ones(7))


@pytest.mark.parametrize("lookup", ["nearest", "cosine"])
def test_each_start_is_what_it_says(lookup):
    latents = torch.randn(4, 2, 8, 8) * 3 + 5
    error = {}
    for start in ("uniform", "latents", "kmeans"):
        torch.manual_seed(0)
        codebook = codebook_of(8, 2, lookup=lookup)
        before = codebook.vectors().clone()
        start_codebook(codebook, latents, start)
        assert torch.equal(codebook.vectors(), before) == (start == "uniform")
        compared, vectors = vectors_of(codebook.comparable(latents)), codebook.vectors().detach()
        error[start] = float((compared - vectors[nearest_codes(compared, vectors)]).square().mean())
    assert error["kmeans"] < error["latents"] < error["uniform"]
