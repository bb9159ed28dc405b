"""What is learned from, chosen on and reported on are never mixed: by record, by person, by signal."""

import hashlib
import tarfile

import pytest

from kdkit import DataError, RecipeError
from kdkit_ecg.datasets import Challenge2020, make_folds
from kdkit_ecg.datasets.folds import Folds
from kdkit_ecg.datasets.samples import _ids
from kdkit_ecg.datasets.signals import twins
from tests.helpers.wfdb_files import write_record

FAST = {"length": 128, "band": None, "scaling": "raw"}
RHYTHMS = ("426783006", "164889003", "427084000")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders that share patients; B90 is A0's signal under another name and patient; S records of PTB."""
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    for number in range(24):
        write_record(first / "a" / "g1", f"A{number}", codes=RHYTHMS[number % 3], noise=number)
    for number in range(12):
        write_record(second / "b", f"B{number}", codes=RHYTHMS[number % 3], noise=100 + number, rate=250)
    write_record(second / "b", "B90", codes=RHYTHMS[1], noise=0)
    for number in range(1, 7):
        write_record(second / "ptb", f"S000{number}", noise=200 + number, age=60 + number // 3)
    rows = [f"A{number},P{number // 2}" for number in range(24)]
    rows += [f"B{number},P{number}" for number in range(12)] + ["B90,P11"]
    (first / "records.csv").write_text("\n".join(["record,patient", *rows]))
    return [first, second]


def signals_of(split):
    return {hashlib.sha256(signal.tobytes()).hexdigest() for signal in split.signals}


def person(name):
    """Who a record of the folders is of, said here anew: B90 makes one person of P0 and P11."""
    number = int(name[1:])
    if name[0] == "S":
        return f"of age {60 + number // 3}"
    patient = {"A": number // 2, "B": 11 if number == 90 else number}[name[0]]
    return f"P{0 if patient == 11 else patient}"


def persons_of(data, split):
    names = {int(_ids([header.name])[0]): header.name for header in data._found[0]}
    return {person(names[id]) for id in split.ids.tolist()}


def three(data):
    return data.train, data.validation, data.test


@pytest.mark.parametrize("fold", range(5))
def test_no_record_person_or_signal_is_in_two_splits(folders, fold):
    data = Challenge2020(folders, fold=fold, **FAST)
    for what in (lambda split: set(split.ids.tolist()), signals_of, lambda split: persons_of(data, split)):
        train, validation, test = map(what, three(data))
        assert train
        assert validation
        assert test
        assert not train & validation
        assert not train & test
        assert not validation & test
    assert sum(map(len, three(data))) == 42


@pytest.mark.parametrize("fold", range(5))
def test_the_paper_mixes_selection_and_test_and_says_so_but_nothing_with_train(folders, fold):
    data = Challenge2020.paper(folders, fold=fold, length=128)
    train, validation, test = (set(split.ids.tolist()) for split in three(data))
    assert validation == test
    assert not train & test
    assert not signals_of(data.train) & signals_of(data.test)
    assert len(train) + len(test) == 42
    assert any("chosen on the test split" in notice for notice in data.notices)
    assert any("a patient may be in several splits" in notice for notice in data.notices)


def test_folds_by_record_do_part_patients(folders):  # or the test above would prove nothing
    data = Challenge2020(folders, grouping="record", **FAST)
    assert persons_of(data, data.train) & persons_of(data, data.test)
    assert make_folds(folders, grouping="record").parted
    assert not make_folds(folders).parted


def test_every_record_is_reported_on_in_one_fold_and_chosen_on_in_the_one_before(folders):
    splits = [Challenge2020(folders, fold=fold, **FAST) for fold in range(5)]
    tested = [each for data in splits for each in data.test.ids.tolist()]
    assert len(tested) == len(set(tested)) == 42
    for fold in range(5):
        assert splits[fold].validation.ids.tolist() == splits[(fold + 1) % 5].test.ids.tolist()


def test_a_file_makes_the_same_splits_as_the_folder_itself(folders, tmp_path):
    make_folds(folders).write(tmp_path / "folds.csv")
    own = Challenge2020(folders, fold=2, **FAST)
    filed = Challenge2020(folders, folds=tmp_path / "folds.csv", fold=2, **FAST)
    assert [split.ids.tolist() for split in three(filed)] == [split.ids.tolist() for split in three(own)]
    assert filed.fingerprint == own.fingerprint
    assert Challenge2020(folders, fold=3, **FAST).fingerprint != own.fingerprint
    assert Challenge2020(folders, fold=2, seed=1, **FAST).fingerprint != own.fingerprint


def test_a_file_keeps_patients_whole_where_the_folder_has_no_table(folders, tmp_path):
    make_folds(folders).write(tmp_path / "folds.csv")
    data = Challenge2020(folders[1], folds=tmp_path / "folds.csv", **FAST)
    assert len(data.test)
    assert not any("records.csv" in notice for notice in data.notices)
    assert data._groups["B11"] == make_folds(folders).places["B11"].patient


def test_records_without_a_fold_are_left_out_and_records_that_are_gone_are_told(folders, tmp_path):
    made = make_folds(folders)
    some = Folds(places={name: place for name, place in made.places.items() if name != "A3"}, k=5)
    data = Challenge2020(folders, folds=some, **FAST)
    assert "1 left out, no fold in the folds file: a/g1/A3" in data.summary
    assert sum(map(len, three(data))) == 41
    part = Challenge2020(folders[0], folds=made, **FAST)
    assert "19 records of the folds file are not here: B0, B1, B10, ..." in part.summary
    assert "19 records of the folds file are not here" in part.notices[-1]
    with pytest.raises(DataError, match=r"strict=True.*(.|\n)*19 records of the folds file"):
        _ = Challenge2020(folders[0], folds=made, strict=True, **FAST).train


def test_a_file_of_other_records_is_refused(folders):
    made = make_folds(folders)
    other = Folds(places={f"X{name}": place for name, place in made.places.items()}, k=5)
    with pytest.raises(DataError, match="none of the 43 records of the folds file, 'XA0' first, is among the 43"):
        _ = Challenge2020(folders, folds=other, **FAST).train


def test_a_file_that_parts_patients_is_refused_but_by_record(folders):
    made = make_folds(folders, grouping="record")
    with pytest.raises(DataError, match=r"the folds part .* take grouping='record' to accept this"):
        _ = Challenge2020(folders, folds=made, **FAST).train
    assert len(Challenge2020(folders, folds=made, grouping="record", **FAST).train)


def test_folds_are_kept_when_records_join(folders):
    made = make_folds(folders, seed=3)
    few = Folds(places={name: place for name, place in made.places.items() if name[0] in "AB"}, k=5)
    more = make_folds(folders, keep=few)
    assert {name: more.places[name].fold for name in few.places} == {name: p.fold for name, p in few.places.items()}
    assert not more.parted
    assert len(more.places) == 43
    with pytest.raises(DataError, match="give k=5"):
        make_folds(folders, k=4, keep=few)


def test_folds_to_keep_that_part_who_is_found_to_be_one_person_are_refused(folders):
    with pytest.raises(DataError, match=r"the folds to keep have P0 in . and .; make new ones"):
        make_folds(folders, keep=make_folds(folders[0]))


def test_records_with_one_signal_are_found_by_their_headers(folders):
    data = Challenge2020(folders, **FAST)
    assert twins(data._found[0]) == [["A0", "B90"]]
    assert data._groups["A0"] == data._groups["B90"] == data._groups["B11"]
    assert "the signal of another record: b/B90" in data.summary


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"folds": 5, "shares": (0.7, 0.1, 0.2)}, RecipeError, "give one of the two"),
        ({"folds": 2}, RecipeError, "takes 3 folds or more, not 2"),
        ({"folds": "nowhere.csv"}, DataError, "no folds file nowhere.csv"),
        ({"fold": 5}, RecipeError, "0 to 4, not 5"),
        ({"grouping": "person"}, RecipeError, "grouping='person' is not known"),
    ],
)
def test_options_that_make_no_splits_are_refused(folders, options, error, said):
    with pytest.raises(error, match=said):
        _ = Challenge2020(folders, **{**FAST, **options}).train


def test_two_folds_are_enough_where_nothing_is_kept_apart_to_choose_on(folders):
    data = Challenge2020(folders, folds=2, selection="test", **FAST)
    assert len(data.train) + len(data.test) == 42


def test_real_records_of_one_person_or_one_signal_are_in_one_fold(shared):
    folds = make_folds(shared / "ecg")
    assert not folds.parted
    several = {name: place for name, place in folds.places.items() if place.patient == "P13619"}
    assert len(several) > 3
    assert len({place.fold for place in several.values()}) == 1
    assert folds.places["A0101"].fold == folds.places["Q0048"].fold
    sizes = [sum(place.fold == fold for place in folds.places.values()) for fold in range(5)]
    assert max(sizes) - min(sizes) <= 4


@pytest.mark.slow
def test_the_real_records_of_both_folders_share_no_patient_between_splits(shared, tmp_path):
    with tarfile.open(shared / "ecg" / "ptb-xl_zscored_250hz.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    folds = make_folds([shared / "ecg", tmp_path], normalised_units=True)
    assert len(folds.places) > 2000
    assert not folds.parted
    both = {place.patient for place in folds.places.values() if place.database == "ptb-xl"} & {
        place.patient for place in folds.places.values() if place.database == "ptb-xl_zscored_250hz"
    }
    assert both == {"P15203", "P20806"}
