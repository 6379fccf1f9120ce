"""Patients: who says which images show one, when busray asks, and that no identifier comes out."""

import shlex
from pathlib import Path

import pytest

from busray.data.patients import SIMULATED, Patients, with_patients
from busray.records import SourceImage, UserError

TABLE = Path("table.csv")


def images(n: int = 8) -> list[SourceImage]:
    found = []
    for i in range(n):
        name = "benign" if i < n // 2 else "malignant"
        found.append(SourceImage(f"{name}/{i}.png", name, 10, 10, "L", f"{i:064d}"))
    return found


def rows(**columns: list[str]) -> dict[str, dict[str, str]]:
    return {image.file: {name: values[i] for name, values in columns.items()} for i, image in enumerate(images())}


TWO_EACH = ["Q1", "Q1", "Q2", "Q2", "Q3", "Q3", "Q4", "Q4"]


@pytest.mark.parametrize(
    "column",
    ["patient", "patient_id", "PatientID", "Patient ID", "Case", "case_id", "subject", "Subject-ID", "groups", "Group",
     "id", "ID", "study_id", "StudyInstanceUID", "AccessionNumber", "MRN", "participant_no", "id_patient",
     "patient_name", "HN", "nhs_number", "Patientennummer", "Fallnummer", "paziente", "hospital number", "BUSI_ID",
     "anonID", "pseudonym_id", "患者ID", "病人"],
)  # fmt: skip
def test_a_column_of_identifiers_that_is_not_the_group_is_asked_about(column: str) -> None:
    with pytest.raises(UserError) as caught:
        with_patients(images(), rows(**{column: TWO_EACH}), TABLE, {}, None)
    said = str(caught.value)
    assert said.startswith("dataset.metadata: table.csv has a column that may say which images show one patient")
    assert f"`{column}` (4 values for 8 images)" in said
    assert shlex.quote(f"--dataset.group={column}") in said and "--dataset.group=none" in said
    assert "Q1" not in said


@pytest.mark.parametrize(
    "column", ["birads", "patient_age", "device", "sex", "density", "PatientSex", "imageno_of_view"]
)
def test_a_column_of_findings_is_not_asked_about(column: str) -> None:
    grouped, found = with_patients(images(), rows(**{column: TWO_EACH}), TABLE, {}, None)
    assert [image.group for image in grouped] == [None] * 8
    assert grouped[0].columns == {column: "Q1"}
    assert found.source == ""
    assert found.sentences()[0].startswith("Nobody said which images show one patient")


@pytest.mark.parametrize("values", [["mass", "cyst"] * 4, ["A", "B", "C", "A", "B", "C", "A", "B"]])
def test_a_column_named_lesion_or_study_with_words_is_not_asked_about(values: list[str]) -> None:
    for column in ("lesion", "study", "exam"):
        grouped, _ = with_patients(images(), rows(**{column: values}), TABLE, {}, None)
        assert grouped[0].columns == {column: values[0]}


def test_the_column_that_the_setting_names_is_the_patient_and_is_not_stored() -> None:
    grouped, found = with_patients(images(), rows(Case=TWO_EACH, birads=["3"] * 8), TABLE, {}, "Case")
    assert [image.group for image in grouped] == [f"patient {1 + i // 2}" for i in range(8)]
    assert grouped[0].columns == {"birads": "3"}
    assert "Q1" not in repr(grouped) + repr(found) + repr(found.to_dict())
    assert found.sentences()[0] == "4 patients by column `Case` of table.csv, at most 2 images of one."


def test_none_says_that_nobody_knows() -> None:
    who = {image.path: ("ID-1", "1.2") for image in images()}
    grouped, found = with_patients(images(), rows(patient_id=TWO_EACH), TABLE, who, "none")
    assert {image.group for image in grouped} == {None}
    assert found.source == ""
    assert grouped[0].columns == {}  # a patient's identifier is never stored


def test_a_setting_that_names_no_column_is_refused_with_the_columns() -> None:
    with pytest.raises(
        UserError, match=r"dataset.group: no column 'Case': table.csv has the columns birads, patient_id"
    ):
        with_patients(images(), rows(patient_id=TWO_EACH, birads=TWO_EACH), TABLE, {}, "Case")
    with pytest.raises(UserError, match=r"dataset.group: no column 'Case': there is no dataset.metadata"):
        with_patients(images(), {}, None, {}, "Case")
    with pytest.raises(UserError, match=r"dataset.group: dicom, but no image is DICOM"):
        with_patients(images(), {}, None, {}, "dicom")


def test_a_second_column_is_asked_about_only_where_the_group_would_tear_it() -> None:
    lesion = [f"L{i}" for i in range(8)]
    with pytest.raises(UserError, match=r"`patient_id` \(4 values for 8 images\)"):
        with_patients(images(), rows(group=lesion, patient_id=TWO_EACH), TABLE, {}, None)
    grouped, _ = with_patients(images(), rows(group=TWO_EACH, lesion_id=lesion, patient_id=TWO_EACH), TABLE, {}, None)
    assert len({image.group for image in grouped}) == 4


def test_identifiers_of_which_each_image_has_its_own_say_that_patients_have_one_image() -> None:
    grouped, found = with_patients(images(), rows(patient_id=[f"Q{i}" for i in range(8)]), TABLE, {}, None)
    assert len({image.group for image in grouped}) == 8
    assert found.sentences()[0] == "8 patients by column `patient_id` of table.csv, at most 1 images of one."


def test_an_image_without_a_row_is_refused_where_a_column_says_who_is_who() -> None:
    half = dict(list(rows(Case=TWO_EACH).items())[:4])
    with pytest.raises(UserError, match=r"has no row for 4 images, such as 'malignant/4.png'; with a column `Case`"):
        with_patients(images(), half, TABLE, {}, "Case")


def test_dicoms_patient_and_study_are_the_group_by_default() -> None:
    ids = [("P1", "s1"), ("P1", "s2"), ("", "s2"), ("P2", ""), ("P2", "s3"), ("", ""), ("P3", "s4"), ("P3", "s4")]
    who = {image.path: one for image, one in zip(images(), ids, strict=True)}
    grouped, found = with_patients(images(), {}, None, who, None)
    number = ["patient 1"] * 3 + ["patient 2"] * 2 + [None] + ["patient 3"] * 2
    assert [image.group for image in grouped] == number
    assert (found.patients, found.images, found.total, found.largest) == (3, 7, 8, 3)
    assert "1 images have no patient and count as one each" in found.sentences()[0]
    assert "P1" not in repr(found)


def test_one_patient_id_for_all_files_is_not_used_and_said() -> None:
    who = {image.path: ("ANONYMOUS", f"s{i // 4}") for i, image in enumerate(images())}
    grouped, found = with_patients(images(), {}, None, who, None)
    assert len({image.group for image in grouped}) == 2
    assert "All 8 DICOM files have one PatientID" in " ".join(found.sentences())
    who = {image.path: ("ANONYMOUS", "s") for image in images()}
    grouped, found = with_patients(images(), {}, None, who, None)
    assert {image.group for image in grouped} == {None}
    assert "DICOM does not say who is who" in " ".join(found.sentences())
    assert "ANONYMOUS" not in repr(found)


def test_a_table_and_dicom_join_what_either_joins_unless_the_setting_names_one() -> None:
    who = {image.path: (f"P{i // 4}", "") for i, image in enumerate(images())}
    table = rows(group=TWO_EACH)
    assert len({image.group for image in with_patients(images(), table, TABLE, who, None)[0]}) == 2
    assert len({image.group for image in with_patients(images(), table, TABLE, who, "group")[0]}) == 4
    assert len({image.group for image in with_patients(images(), table, TABLE, who, "dicom")[0]}) == 2


def test_simulated_images_show_no_patient() -> None:
    assert Patients(SIMULATED).sentences() == ("The images are simulated: they show no patient.",)


def test_numbers_of_patients_are_the_same_whatever_the_order_of_the_images() -> None:
    one, _ = with_patients(images(), rows(group=TWO_EACH), TABLE, {}, None)
    other, _ = with_patients(images()[::-1], rows(group=TWO_EACH), TABLE, {}, None)
    assert {image.file: image.group for image in one} == {image.file: image.group for image in other}


def test_codes_in_a_column_of_any_name_are_asked_about_and_dates_are_not() -> None:
    codes = ["P012", "P012", "P013", "P013", "P014", "P014", "P015", "P015"]
    with pytest.raises(UserError, match=r"`what` .4 values for 8 images"):
        with_patients(images(), rows(what=codes), TABLE, {}, None)
    dates = [f"2020-01-0{1 + i // 2}" for i in range(8)]
    _, found = with_patients(images(), rows(what=dates), TABLE, {}, None)
    assert found.source == ""


def test_a_column_without_any_value_says_nothing() -> None:
    with pytest.raises(UserError, match=r"the column 'case' of table.csv is empty in all rows"):
        with_patients(images(), rows(case=[""] * 8), TABLE, {}, "case")
    _, found = with_patients(images(), rows(group=[""] * 8), TABLE, {}, None)
    assert (found.source, found.patients) == ("", 0)


def test_identifiers_that_are_written_in_two_ways_are_said() -> None:
    written = ["P1", "p1", "P 2", "P2", "3.0", "3", "004", "4"]
    _, found = with_patients(images(), rows(group=written), TABLE, {}, None)
    assert found.patients == 8
    assert found.notes[0].startswith("In column `group` 4 values are written in more than one way")
    _, found = with_patients(images(), rows(group=TWO_EACH), TABLE, {}, None)
    assert found.notes == ()


@pytest.mark.parametrize("name", ["patient_{}", "P{:03}", "{}", "Case {}a", "series/{}"])
def test_folders_that_may_be_patients_are_asked_about_and_can_be_the_group(name: str) -> None:
    folder_of = {image.path: name.format(i // 2) for i, image in enumerate(images())}
    with pytest.raises(UserError, match=r"4 folders for 8 images.*--dataset.group=folder.*--dataset.group=none"):
        with_patients(images(), {}, None, {}, None, folder_of)
    grouped, found = with_patients(images(), {}, None, {}, "folder", folder_of)
    assert [image.group for image in grouped] == [f"patient {1 + i // 2}" for i in range(8)]
    assert found.source == "the folders below the classes"
    grouped, _ = with_patients(images(), {}, None, {}, "none", folder_of)
    assert grouped[0].group is None


def test_other_folders_are_not_asked_about() -> None:
    for names in (["", "", "", "", "more", "more", "more", "more"], ["left", "right"] * 4, [f"p{i}" for i in range(8)]):
        folder_of = {image.path: name for image, name in zip(images(), names, strict=True)}
        _, found = with_patients(images(), {}, None, {}, None, folder_of)
        assert found.source == ""
    with pytest.raises(UserError, match="no image lies in a folder below"):
        with_patients(images(), {}, None, {}, "folder", {})


def of_names(*names: str) -> list[SourceImage]:
    return [SourceImage(f"benign/{name}.png", "benign", 10, 10, "L", f"{i:064d}") for i, name in enumerate(names)]


@pytest.mark.parametrize(
    "names",
    [
        ("P012_left", "P012_right", "P013_left", "P013_right"),
        ("bus_0001-l", "bus_0001-r", "bus_0002-l", "bus_0002-r", "bus_0003-s"),
        ("patient 7 R 1", "patient 7 R 2", "patient 8 L", "patient 8 R"),
        ("0017_1", "0017_2", "0018_1", "0018_2"),
    ],
)
def test_names_that_end_in_a_side_or_an_index_are_said_and_can_be_the_group(names: tuple[str, ...]) -> None:
    grouped, found = with_patients(of_names(*names), {}, None, {}, None)
    (note,) = found.notes
    assert f"such as benign/{names[0]}.png and benign/{names[1]}.png" in note and "--dataset.group=file" in note
    assert {image.group for image in grouped} == {None}

    grouped, found = with_patients(of_names(*names), {}, None, {}, "file")
    group_of = {image.file: image.group for image in grouped}
    assert group_of[f"benign/{names[0]}.png"] == group_of[f"benign/{names[1]}.png"] == "patient 1"
    assert group_of[f"benign/{names[2]}.png"] == "patient 2"
    assert found.source == "the names of their files" and not found.notes
    assert not with_patients(of_names(*names), {}, None, {}, "none")[1].notes


@pytest.mark.parametrize(
    "names",
    [
        [f"benign ({i})" for i in range(1, 40)],  # BUSI
        [f"benign_{i}" for i in range(40)],
        [f"00{i:04}" for i in range(40)],
        [f"ALWI_{i:03}" for i in range(40)],
        [f"birads_{level}_{i}" for level in (3, 4, 5) for i in range(40)],
        [f"1.2.840.113619.2.{i}" for i in range(40)],
        ["a_1_left", "a_1_right", "b", "c", "d", "e"],
    ],
)
def test_names_that_number_images_are_not_taken_for_patients(names: list[str]) -> None:
    assert not with_patients(of_names(*names), {}, None, {}, None)[1].notes


def test_names_are_no_patients_where_a_table_says_who_is_who_or_none_is_built_so() -> None:
    named = of_names("P1_left", "P1_right", "P2_left", "P2_right")
    table = {image.file: {"group": f"g{i // 2}"} for i, image in enumerate(named)}
    assert not with_patients(named, table, TABLE, {}, None)[1].notes
    with pytest.raises(UserError, match="file, but no file's name ends in a side or an index"):
        with_patients(images(), {}, None, {}, "file")
