"""CUDA tensors where they lie. Needs a laprox with the CUDA backend, PyTorch and a GPU; all of it is skipped elsewhere."""

import laprox
import numpy as np
import pytest
from laprox import _core

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not (_core.has_cuda and torch.cuda.is_available()), reason="needs the CUDA backend and a GPU")

POLICIES = ["h2o", "snapkv", "laprox", "laprox-r", "laprox-far", "knorm", "keydiff", "cake", "expected-attention", "criticalkv"]
CONTEXT, TOKENS = 700, 716


def tensors(dtype=torch.bfloat16, head_size=64, seed=0, heads=(4, 2), model_size=96):
    """q, k, v and w_o on the host, and the vectors that some policies read."""
    draw = torch.Generator().manual_seed(seed)
    query_heads, kv_heads = heads
    shapes = {
        "q": (query_heads, TOKENS, head_size),
        "k": (kv_heads, TOKENS, head_size),
        "v": (kv_heads, TOKENS, head_size),
        "w_o": (query_heads * head_size, model_size),
    }
    return {name: torch.randn(shape, generator=draw).to(dtype) for name, shape in shapes.items()}


def layer(given, **more):
    facts = {"residual_norms": np.linspace(1, 2, TOKENS), "rope_inv_freq": 1e4 ** -np.linspace(0, 0.9, 8)}
    return laprox.Layer(**given, context_length=CONTEXT, **facts, **more)


def on_gpu(given):
    return {name: tensor.cuda() for name, tensor in given.items()}


def with_gaps(given):
    """The same numbers in tensors that are not contiguous, each in another way; w_o is a weight's transpose."""
    return {
        "q": given["q"].transpose(0, 1).contiguous().transpose(0, 1),
        "k": torch.cat([given["k"], given["k"]], 2)[:, :, : given["k"].shape[2]],
        "v": torch.cat([given["v"], given["v"]], 1)[:, : given["v"].shape[1]],
        "w_o": given["w_o"].T.contiguous().T,
    }


@pytest.mark.parametrize("head_size", [64, 80, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("layout", [on_gpu, lambda given: with_gaps(on_gpu(given))], ids=["contiguous", "gaps"])
def test_tensors_on_the_gpu_give_what_host_tensors_give(dtype, head_size, layout):
    given = tensors(dtype, head_size)
    host, device = layer(given), layer(layout(given))
    assert (host.device, device.device) == ("cpu", "cuda:0")
    for policy in POLICIES:
        expected = laprox.scores(host, policy, budget="10%", backend="cuda")
        np.testing.assert_array_equal(laprox.scores(device, policy, budget="10%", backend="cuda"), expected, policy)
    found = laprox.sweep(device, POLICIES, ["10%", "20%"], backend="cuda", save_kept=True)
    expected = laprox.sweep(host, POLICIES, ["10%", "20%"], backend="cuda", save_kept=True)
    for name in ("model_relative_error", "model_residual_error", "kept_count", "kept_tokens"):
        np.testing.assert_array_equal(found[name].values, expected[name].values, name)


def test_kept_sets_are_the_cpu_backends():
    given = tensors(torch.float32)
    host, device = layer(given), layer(on_gpu(given))
    for policy in POLICIES:
        on_cpu = laprox.kept(host, policy, "10%").masks[0]
        on_device = laprox.kept(device, policy, "10%", backend="cuda").masks[0]
        different = on_cpu != on_device
        if different.any():  # a tie, within rounding
            scores = laprox.scores(host, policy, budget="10%")
            assert np.ptp(scores[different]) <= 1e-4 * np.abs(scores).max(), policy


def test_contiguous_tensors_are_not_copied():
    given = on_gpu(tensors())
    held = layer(given)
    for name, tensor in given.items():
        assert held._arrays[name][0].data == tensor.data_ptr()
    before = torch.cuda.memory_allocated()
    layer(given)
    assert torch.cuda.memory_allocated() == before


def test_a_layer_keeps_its_tensors():
    given = on_gpu(tensors())
    expected = laprox.scores(layer(given), "snapkv", backend="cuda")
    held = layer(given)
    shapes = [(tensor.shape, tensor.dtype) for tensor in given.values()]
    del given
    others = [torch.full(shape, 7.0, dtype=dtype, device="cuda") for shape, dtype in shapes]
    np.testing.assert_array_equal(laprox.scores(held, "snapkv", backend="cuda"), expected)
    del others


@pytest.mark.parametrize("given_as", ["argument", "handle", "current"])
def test_work_queued_on_the_stream_comes_first(given_as):
    given = on_gpu(tensors())
    expected = laprox.scores(layer(given), "snapkv", backend="cuda")
    late = {name: torch.zeros_like(tensor) for name, tensor in given.items()}
    held = layer(late)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        for name, tensor in late.items():
            tensor.copy_(given[name])
        if given_as == "current":
            found = laprox.scores(held, "snapkv", backend="cuda")
    if given_as != "current":
        found = laprox.scores(held, "snapkv", backend="cuda", stream=stream if given_as == "argument" else stream.cuda_stream)
    np.testing.assert_array_equal(found, expected)


def test_other_streams_are_not_waited_for():
    held = layer(on_gpu(tensors()))
    for policy in ("snapkv", "laprox-r", "h2o"):
        laprox.scores(held, policy, backend="cuda")  # loads the kernels and fills the pool
    laprox.sweep(held, ["snapkv", "laprox-r", "h2o"], "10%", backend="cuda")
    other, done = torch.cuda.Stream(), torch.cuda.Event()
    with torch.cuda.stream(other):
        torch.cuda._sleep(4_000_000_000)
        done.record()
    for policy in ("snapkv", "laprox-r", "h2o"):
        laprox.scores(held, policy, backend="cuda")
    laprox.sweep(held, ["snapkv", "laprox-r", "h2o"], "10%", backend="cuda")
    assert not done.query()
    torch.cuda.synchronize()


@pytest.mark.parametrize("name, place", [("q", "[3, 5, 7]"), ("k", "[1, 5, 7]"), ("v", "[1, 5, 7]"), ("w_o", "[5, 7]")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("layout", [dict, with_gaps])
def test_values_that_are_not_finite_are_named(name, place, dtype, layout):
    given = on_gpu(tensors(dtype))
    given[name][tuple(eval(place))] = float("nan")
    given[name].view(-1)[-1] = float("inf")  # a later one is not told
    with pytest.raises(laprox.DumpError, match=f"layer 0, {name}: expected finite values, found nan at ") as error:
        laprox.scores(layer(layout(given)), "h2o", backend="cuda")
    assert place in str(error.value)


def test_other_backends_and_mixed_layers_are_refused():
    given = tensors()
    held = layer(on_gpu(given))
    for call in (laprox.scores, lambda *a, **k: laprox.kept(*a, "10%", **k), lambda *a, **k: laprox.sweep(*a, "10%", **k)):
        with pytest.raises(laprox.BackendError, match=r'on the GPU cuda:0, and the backend cpu reads.*backend="cuda".*\.cpu\(\)'):
            call(held, "snapkv")
    with pytest.raises(laprox.BackendError, match="float64 reference reads the host"):
        laprox.verify(held, backend="cuda")
    with pytest.raises(laprox.ArrayError, match="k: expected it on cuda:0, where q is, found cpu"):
        layer({**on_gpu(given), "k": given["k"]})
    with pytest.raises(laprox.ArrayError, match="v: expected the element type of q, bfloat16, .* found float32"):
        layer({**on_gpu(given), "v": given["v"].float().cuda()})
    with pytest.raises(laprox.ArrayError, match="q: expected elements of type float16, bfloat16, float32 on a GPU, found float64"):
        layer({name: tensor.double().cuda() for name, tensor in given.items()})
    with pytest.raises(laprox.UsageError, match="stream: expected a CUDA stream"):
        laprox.scores(held, "snapkv", backend="cuda", stream="fast")
    with pytest.raises(laprox.ArrayError, match="layer 1: expected device to be that of layer 0, cuda:0, found cpu"):
        laprox.kept([held, layer(given)], "snapkv", "10%", backend="cuda")


def test_a_policy_of_ones_own_reads_a_layer_on_the_gpu():
    @laprox.policy("loud-keys-on-gpu", queries=32)
    def loud_keys(view):
        assert view.q.shape == (4, 32, 64) and view.w_o.shape == (4, 64, 96)
        return np.square(view.k).sum(2) * view.attention_sums(32).reshape(2, 2, -1).sum(1) * np.abs(view.v).sum(2)

    given = tensors()
    found = laprox.scores(layer(with_gaps(on_gpu(given))), loud_keys, backend="cuda")
    np.testing.assert_allclose(found, laprox.scores(layer(given), loud_keys), rtol=2e-3)


def test_cupy_arrays_are_shared_too():
    cupy = pytest.importorskip("cupy")
    given = {name: cupy.asarray(tensor.numpy()) for name, tensor in tensors(torch.float16).items()}
    held = layer(given)
    assert held._arrays["k"][0].data == given["k"].data.ptr
    expected = laprox.scores(layer(tensors(torch.float16)), "snapkv", backend="cuda")
    np.testing.assert_array_equal(laprox.scores(held, "snapkv", backend="cuda"), expected)
    queue = cupy.cuda.Stream(non_blocking=True)
    np.testing.assert_array_equal(laprox.scores(held, "snapkv", backend="cuda", stream=queue), expected)


def test_an_evaluation_on_the_gpu_is_the_one_through_the_host(monkeypatch):
    pytest.importorskip("laprox_dump")
    from laprox.eval import Settings, evaluation
    from laprox.eval.record import record
    from test_eval import Numbers, task
    from tiny_models import FAMILIES

    model = Numbers(FAMILIES["llama"].build().to("cuda"), "llama")
    policies = laprox._policies.parse_many(["snapkv:window=8,kernel=3", "h2o", "laprox-r:window=8,kernel=3,sinks=2"])
    settings = Settings(tokens=6, threads=1, backend="cuda")
    direct = evaluation.evaluate_prompt(model, task(answers=["5 6"]), policies, ["25%", "50%"], settings)
    monkeypatch.setattr(evaluation, "record", lambda *given: record(*given[:-1]))
    through_host = evaluation.evaluate_prompt(model, task(answers=["5 6"]), policies, ["25%", "50%"], settings)
    for name, values in direct.cells.items():
        np.testing.assert_array_equal(values, through_host.cells[name], name)
