"""`Leads` selects leads by number or name, and refuses names that are not leads."""

import pickle
from itertools import combinations

import pytest
import torch

from kdkit import Batch, RecipeError
from kdkit_ecg.datasets.signal_split import Ecg
from kdkit_ecg.leads import LEAD_SETS, LEADS, LIMB_LEADS, derivation, missing_leads, standard_name, standard_names
from kdkit_ecg.views import Leads


def batch(leads=12):
    signal = torch.arange(leads).float()[None, :, None].expand(2, leads, 7).clone()
    return Batch(Ecg(signal, torch.rand(2, 5)), torch.zeros(2, 3))


def selected_channels(view):
    # Every sample of `batch` is the number of its channel.
    (signal, _), _ = view(batch())
    return signal[0, :, 0].int().tolist()


@pytest.mark.parametrize(
    ("count", "expected"),
    [(12, list(range(12))), (6, [0, 1, 2, 3, 4, 5]), (4, [0, 1, 2, 7]), (3, [0, 1, 7]), (2, [0, 1]), (1, [0])],
)
def test_lead_sets_select_their_leads(count, expected):
    assert selected_channels(Leads(count)) == expected
    assert len(Leads(count)) == count
    assert Leads(count).names == LEAD_SETS[count]


def test_channels_have_the_order_of_the_names():
    assert selected_channels(Leads(("V6", "II", "I", "aVR"))) == [11, 1, 0, 3]


def test_every_lead_can_be_selected_by_name():
    assert [selected_channels(Leads((name,))) for name in LEADS] == [[channel] for channel in range(12)]


def test_person_and_keywords_pass_unchanged():
    ecg = batch()
    (signal, person), keywords = Leads(3)(ecg)
    assert signal.shape == (2, 3, 7)
    assert person is ecg.inputs.person
    assert keywords == {}


@pytest.mark.parametrize("leads", [12, 6, 2, 1, ("V1", "V2", "V3")])
def test_neighbouring_leads_are_not_copied(leads):
    ecg = batch()
    (signal, _), _ = Leads(leads)(ecg)
    # A slice is a view of the same memory.
    assert signal.untyped_storage().data_ptr() == ecg.inputs.signal.untyped_storage().data_ptr()


def test_names_are_accepted_in_any_case():
    assert Leads(("i", "AVR", "avl", "v2")).names == ("I", "aVR", "aVL", "V2")


def test_key_contains_all_leads():
    assert Leads(2).key == "leads:I,II"
    assert Leads(("II", "I")).key == "leads:II,I"


def test_views_with_the_same_leads_are_equal():
    assert Leads(2) == Leads(("i", "ii"))
    assert hash(Leads(2)) == hash(Leads(("I", "II")))
    assert Leads(("II", "I")) != Leads(2)
    assert len({Leads(2), Leads(("I", "II")), Leads(3)}) == 2


def test_views_survive_pickling():
    view = pickle.loads(pickle.dumps(Leads(3)))
    assert view == Leads(3)
    assert selected_channels(view) == [0, 1, 7]


def test_views_are_immutable():
    with pytest.raises(AttributeError):
        Leads(2).names = ("I",)
    assert not hasattr(Leads(2), "__dict__")


def test_repr_creates_an_equal_view():
    assert eval(repr(Leads(3)), {"Leads": Leads}) == Leads(3)


@pytest.mark.parametrize(("count", "nearest"), [(77, 12), (5, "(4|6)"), (0, 1), (-1, 1)])
def test_number_without_a_set_is_refused_with_the_nearest(count, nearest):
    with pytest.raises(
        RecipeError,
        match=f"expected the size of a lead set \\(1, 2, 3, 4, 6, 12\\), got {count}; did you mean {nearest}",
    ):
        Leads(count)


@pytest.mark.parametrize(("wrong", "nearest"), [("avx", "aV[RLF]"), ("AVRR", "aVR"), ("IV", "I"), ("V22", "V2")])
def test_unknown_name_is_refused_with_the_nearest(wrong, nearest):
    with pytest.raises(RecipeError, match=f"'{wrong}' is not a lead; did you mean '{nearest}'"):
        Leads(("I", wrong))


def test_a_name_unlike_any_lead_is_refused_with_all_of_them():
    with pytest.raises(RecipeError, match="'chest' is not a lead; there are: I, II"):
        Leads(("chest",))


def test_repeated_name_is_refused():
    with pytest.raises(RecipeError, match="expected every lead once, got 'II' twice"):
        Leads(("I", "II", "ii"))


@pytest.mark.parametrize("leads", [(), "II", (2,)])
def test_anything_but_a_tuple_of_names_is_refused(leads):
    with pytest.raises(RecipeError, match=r"Leads expects|is not a lead"):
        Leads(leads)


def test_signal_without_twelve_leads_is_refused():
    with pytest.raises(RecipeError, match="expects a signal with 12 leads, got one with 8"):
        Leads(2)(batch(leads=8))


@pytest.mark.parametrize("leads", [2, 3, ("V6", "I")])
def test_views_compile_as_one_graph(leads):
    view = Leads(leads)
    compiled = torch.compile(lambda inputs: view(inputs)[0][0] * 2, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch()), view(batch())[0][0] * 2)


@pytest.mark.parametrize("pair", list(combinations(LIMB_LEADS, 2)))
def test_any_two_limb_leads_give_all_others_exactly(pair):
    # With I = 3 and II = 5, all limb leads are multiples of a half.
    values = {lead: 3 * of_i + 5 * of_ii for lead, (of_i, of_ii) in LIMB_LEADS.items()}
    assert values == {"I": 3, "II": 5, "III": 2, "aVR": -4, "aVL": 0.5, "aVF": 3.5}
    for lead in LIMB_LEADS.keys() - pair:
        factors = derivation(pair, lead)
        assert set(factors) == set(pair)
        assert sum(factor * values[name] for name, factor in factors.items()) == pytest.approx(values[lead], abs=1e-12)


def test_i_and_ii_are_preferred_and_otherwise_the_pair_with_the_least_noise():
    assert derivation(LEADS, "III") == {"I": -1, "II": 1}
    assert derivation([lead for lead in LEADS if lead not in ("I", "aVR")], "aVR") == {"II": -0.75, "aVL": -0.5}
    assert derivation(("aVF", "III", "II"), "aVR") == {"II": -1, "III": 0.5}


def test_leads_that_cannot_be_derived_are_missing():
    assert missing_leads(("II", "aVL", "V1"), ("I", "aVR", "V1")) == []
    assert missing_leads(("II", "V1"), ("I", "II", "V2")) == ["I", "V2"]
    assert missing_leads(("I", "II")) == list(LEADS[6:])
    assert missing_leads(("MLII",), ("MLII",)) == []


@pytest.mark.parametrize(
    ("name", "lead"),
    [
        ("Lead I", "I"),
        ("ECG Lead I", "I"),
        ("EKG II", "II"),
        ("AVR", "aVR"),
        ("DIII", "III"),
        ("di", "I"),
        ("MLII", "MLII"),
    ],
)
def test_names_of_leads_in_other_programs_are_known(name, lead):
    assert standard_name(name) == lead


CHEST_ELECTRODES = [f"C{number}" for number in range(1, 7)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Lead I", "DII", *CHEST_ELECTRODES], ("I", "II", *LEADS[6:])),
        (["ECG I", "ECG II", *(f"ECG {name.lower()}" for name in CHEST_ELECTRODES)], ("I", "II", *LEADS[6:])),
        (["I", "II", "C3", "C4"], ("I", "II", "C3", "C4")),  # of an EEG, next to two leads
        (["ECG", *CHEST_ELECTRODES], ("ECG", *CHEST_ELECTRODES)),
        (["I", "II", *CHEST_ELECTRODES, "V1"], ("I", "II", *CHEST_ELECTRODES, "V1")),
    ],
)
def test_c1_to_c6_next_to_limb_leads_are_v1_to_v6(names, expected):
    assert standard_names(names) == expected
