"""Which arrays a Layer takes, and how it refuses the others."""

import h5py
import laprox
import ml_dtypes
import numpy as np
import pytest
from conftest import arrays, layer, write_dump


class CudaTensor:
    """What DLPack says of a tensor on a GPU."""

    shape, ndim = (2, 96, 8), 3

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, **_):
        raise AssertionError("a refused tensor is not read")


def same(a, b):
    return np.array_equal(laprox.scores(a, "h2o"), laprox.scores(b, "h2o"))


@pytest.mark.parametrize("name", ["q", "k", "v", "w_o"])
def test_wrong_rank_names_the_array_and_its_dimensions(name):
    given = arrays()
    given[name] = given[name][0]
    with pytest.raises(laprox.ArrayError, match=rf"^{name}: expected \d dimensions \[H_.*found \d: shape"):
        laprox.Layer(**given)


@pytest.mark.parametrize("dtype", [np.int32, np.int8, np.complex64, bool, "O"])
def test_other_element_types_are_refused(dtype):
    given = arrays()
    given["k"] = given["k"].astype(dtype)
    with pytest.raises(laprox.ArrayError, match="k: expected elements of type float16, bfloat16, float32, float64, found"):
        laprox.Layer(**given)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(laprox.ArrayError, match=r"k: expected H_q to be a multiple of H_kv, found H_q = 4, H_kv = 3"):
        layer(kv_heads=3)


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("k", (2, 96, 7), "k: expected shape .* d = 8, as q has, found shape"),
        ("v", (2, 95, 6), "v: expected shape .* as k has, found shape"),
        ("v", (1, 96, 6), "v: expected shape .* as k has, found shape"),
        ("w_o", (25, 10), r"w_o: expected shape \[H_q \* d_v, D\] = \[24, any\], found shape"),
        ("q", (4, 97, 8), "q: expected at most T = 96 queries"),
        ("q", (4, 0, 8), "q: expected sizes above 0"),
    ],
)
def test_shapes_that_disagree_are_refused(name, shape, message):
    given = arrays()
    given[name] = np.ones(shape, np.float32)
    with pytest.raises(laprox.ArrayError, match=message):
        laprox.Layer(**given)


@pytest.mark.parametrize("name", ["q", "k", "v", "w_o"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_with_their_place(name, value):
    given = arrays()
    given[name][(1,) * given[name].ndim] = value
    place = r"\[1, 1, 1\]" if given[name].ndim == 3 else r"\[1, 1\]"
    with pytest.raises(laprox.DumpError, match=rf"layer 0, {name}: expected finite values, found .* at {place}"):
        laprox.sweep(laprox.Layer(**given, context_length=80), "knorm", 10)


def test_numbers_beyond_float32_are_refused_where_the_backend_computes_in_it():
    given = {name: values.astype(np.float64) for name, values in arrays().items()}
    given["k"][0, 0, 0] = 1e100
    big = laprox.Layer(**given)
    with pytest.raises(laprox.DumpError, match="within the range of float32"):
        laprox.scores(big, "knorm")
    assert np.isfinite(laprox.scores(big, "knorm", backend="reference")).all()


@pytest.mark.skipif(laprox._core.has_cuda, reason="this laprox has the CUDA backend")
def test_a_gpu_tensor_needs_the_cuda_backend():
    given = arrays()
    given["k"] = CudaTensor()
    with pytest.raises(laprox.BackendError, match=r"k: is a CUDA tensor, and this laprox was built without .*k\.cpu\(\)"):
        laprox.Layer(**given)


@pytest.mark.parametrize(
    "what, value, message",
    [
        ("sinks", [0.0] * 3, r"sinks: expected shape \[H_q\] = \[4\], found \[3\]"),
        ("sinks", [np.nan] * 4, "sinks: expected finite values"),
        ("bias", [0.0] * 9, r"bias: expected shape \[D\] = \[10\]"),
        ("residual_norms", [1.0] * 95, r"residual_norms: expected shape \[N\] = \[96\]"),
        ("residual_norms", [0.0] * 96, "residual_norms: expected norms above 0"),
        ("rope_inv_freq", [1.0] * 5, "rope_inv_freq: expected at most d / 2 = 4"),
        ("positions", list(range(95)), "positions: expected one for each of the 96 queries"),
        ("positions", [0, *range(95)], "positions: expected strictly ascending"),
        ("positions", list(range(1, 97)), "positions: expected positions from 0 to T - 1 = 95"),
        ("positions", [0.5] * 96, "positions: expected whole numbers"),
    ],
)
def test_bad_vectors_are_refused(what, value, message):
    with pytest.raises(laprox.ArrayError, match=message):
        laprox.Layer(**arrays(), **{what: value})


@pytest.mark.parametrize("name", ["q", "w_o", "sinks", "positions", "residual_norms"])
def test_masked_arrays_are_refused(name):
    values = {"sinks": np.ones(4), "positions": np.arange(96), "residual_norms": np.ones(96), **arrays()}[name]
    with pytest.raises(laprox.ArrayError, match=f"^{name}: is a masked array, and its mask would be lost"):
        laprox.Layer(**{**arrays(), name: np.ma.masked_array(values, values == 1)})


@pytest.mark.parametrize("name", ["context_length", "window"])
@pytest.mark.parametrize("value", [61.9, 60.0, True, "60", None, 1j, [60], 2**70, np.float32(60)])
def test_what_is_no_whole_number_is_refused(name, value):
    if (name, value) == ("context_length", None):
        return  # T
    with pytest.raises(laprox.UsageError, match=rf"^{name}: expected a whole number.*, found "):
        laprox.Layer(**arrays(), **{name: value})


def test_whole_numbers_of_numpy_are_taken():
    held = laprox.Layer(**arrays(), context_length=np.int64(60), window=np.uint8(20), scale=np.float32(0.5))
    assert (held.context_length, held.window, held.scale) == (60, 20, 0.5)


@pytest.mark.parametrize("name", ["scale", "softcap"])
@pytest.mark.parametrize("value", ["1", 1j, True, [1, 2], np.inf])
def test_what_is_no_number_is_refused(name, value):
    with pytest.raises(laprox.UsageError, match=rf"^{name}: expected a finite number"):
        laprox.Layer(**arrays(), **{name: value})


@pytest.mark.parametrize(
    "what, value", [("scale", 0), ("scale", np.nan), ("softcap", -1), ("window", -2), ("context_length", 0), ("context_length", 97)]
)
def test_numbers_out_of_range_are_refused(what, value):
    with pytest.raises(laprox.UsageError, match=rf"^{what}: expected"):
        laprox.Layer(**arrays(), **{what: value})


def test_layers_of_one_prompt_must_agree():
    with pytest.raises(laprox.ArrayError, match="layer 1: expected T, the tokens to be that of layer 0, 96, found 90"):
        laprox.kept([layer(), layer(tokens=90)], "knorm", 10)
    with pytest.raises(laprox.ArrayError, match="layer 1: expected positions to be that of layer 0, found others"):
        laprox.kept([layer(), layer(queries=40)], "knorm", 10)


def test_other_layouts_are_copied_and_give_the_same_scores():
    given = arrays()
    fortran = {name: np.asfortranarray(values) for name, values in given.items()}
    swapped = {name: values.astype(values.dtype.newbyteorder()) for name, values in given.items()}
    strided = {name: np.repeat(values, 2, axis=-1)[..., ::2] for name, values in given.items()}
    for other in (fortran, swapped, strided):
        assert same(laprox.Layer(**given), laprox.Layer(**other))


def test_contiguous_arrays_are_not_copied():
    given = arrays()
    held = laprox.Layer(**given)
    for name, values in given.items():
        assert np.shares_memory(held._arrays[name][0], values)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_element_types_give_the_scores_of_their_float32_values(dtype):
    narrow = {name: values.astype(dtype) for name, values in arrays().items()}
    wide = {name: values.astype(np.float32) for name, values in narrow.items()}
    assert same(laprox.Layer(**narrow), laprox.Layer(**wide))


def test_bfloat16_dumps_are_read_as_such(tmp_path):
    narrow = {name: values.astype(ml_dtypes.bfloat16) for name, values in arrays().items()}
    path = write_dump(tmp_path / "bf16.h5", [{name: values.view(np.uint16) for name, values in narrow.items()}])
    with laprox.open_dump(path) as dump:
        assert "bfloat16" in repr(dump[0])
        assert same(dump[0], laprox.Layer(**narrow, context_length=80))
        np.testing.assert_array_equal(laprox.scores(dump, "h2o")[0], laprox.scores(dump[0], "h2o"))


@pytest.mark.parametrize("place, name", [("/", "context_length"), ("/layers/1", "sliding_window"), ("/layers/1", "kv_source")])
@pytest.mark.parametrize(
    "value, message", [(np.uint64(2**63), f"at most {2**63 - 1}, found {2**63}"), (1.5, "an integer, found a 64-bit float")]
)
def test_integers_of_a_dump_that_are_none_or_do_not_fit_are_refused(dump, place, name, value, message):
    with h5py.File(dump, "r+") as file:
        file[place].attrs[name] = value
    with pytest.raises(laprox.DumpError, match=f"{place} attribute {name}: expected .*{message}"):
        laprox.open_dump(dump)


def test_torch_tensors_share_their_memory():
    torch = pytest.importorskip("torch")
    given = {name: torch.from_numpy(values) for name, values in arrays().items()}
    held = laprox.Layer(**given)
    assert held._arrays["k"][0].ctypes.data == given["k"].data_ptr()
    halves = {name: values.to(torch.bfloat16) for name, values in given.items()}
    held = laprox.Layer(**halves)
    assert held._arrays["k"][0].ctypes.data == halves["k"].data_ptr()
    assert same(held, laprox.Layer(**{name: values.float() for name, values in halves.items()}))
    with pytest.raises(laprox.BackendError, match="k: is a tensor on the device 'meta'"):
        laprox.Layer(**{**given, "k": given["k"].to("meta")})


def test_tensors_that_numpy_cannot_share_are_refused_and_negated_ones_are_read():
    torch = pytest.importorskip("torch")
    given = arrays()
    keys = torch.from_numpy(given["k"])
    for other, message in (
        (keys.to(torch.float8_e4m3fn), "expected elements of type float16, .*, found float8_e4m3fn"),
        (keys.to_sparse(), r"expected a dense tensor, found the layout torch.sparse_coo; pass k.to_dense\(\)"),
    ):
        with pytest.raises(laprox.ArrayError, match=f"^k: {message}"):
            laprox.Layer(**{**given, "k": other})
    negated = torch.complex(torch.zeros_like(keys), keys).conj().imag
    assert negated.is_neg()
    assert same(laprox.Layer(**{**given, "k": negated}), laprox.Layer(**{**given, "k": -given["k"]}))
