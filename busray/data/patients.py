"""Which images show one patient, so that no patient is on two sides of the split.

A column of the metadata says it, or DICOM's PatientID and StudyInstanceUID do. What they say is
compared and then forgotten: patients are numbered in the order of their first file, and numbers
are all that is stored. No message quotes an identifier.
"""

import re
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from busray.data.duplicates import connected
from busray.data.metadata import plain_name
from busray.records import SourceImage, UserError

# Values of dataset.group that are no columns
NOBODY, DICOM, FOLDER, FILE = "none", "dicom", "folder", "file"
SIMULATED = "simulation"
GROUP = "group"  # the column that is used without a setting
# English, and what the same is called elsewhere, as plain names (metadata.plain_name)
PERSON = (
    "patients?|patienten|patientin|patientes?|pacientes?|pazient[ei]|subjects?|subj|sujets?|participants?|persons?"
    "|personen|individuals?|volunteers?|proband(?:en)?|mrn|pid|pat|hn|nhs|ssn|wom[ae]n|病人|患者|受试者|被験者|환자|пациент"
)
EVENT = (
    "cases?|stud(?:y|ies)|exams?|examinations?|accessions?|visits?|encounters?|lesions?|series|fall|faelle|casos?|caso"
    "|dossiers?|records?|medicalrecords?|hospital|anon|pseudo|users?|clients?|病例|症例"
)
NUMBER = (
    "ids?|identifiers?|no|nr|num|numbers?|nummer|numero|codes?|keys?|uids?|instanceuids?|hash|index|names?"
    "|identifiants?|identificador|kennung|pseudonym(?:e|es|s)?|编号|番号|号"
)
# Values that look like codes of something: P012, 1048576, a UUID; and dates, which do not count
CODE = re.compile(r"[^\W\d_]+[-_. ]?\d{2,}\w*|\d{5,}|[0-9a-f]{8}[0-9a-f-]*", re.IGNORECASE)
DATE = re.compile(r"\d{2,4}[-./]?\d{2}[-./]?\d{2,4}")
# Columns, by their plain names, that tell patients apart whatever their values look like
IDENTIFIER = re.compile(f"(?:(?:id)?(?:{PERSON})(?:{NUMBER})?|groups?(?:{NUMBER})?|(?:id)?(?:{EVENT})(?:{NUMBER}))")
# Those that do so where their values look like numbers of something
MAYBE_IDENTIFIER = re.compile(f"(?:{EVENT}|{NUMBER})")
# Columns that say who a patient is: never stored
PERSONAL = re.compile(
    f"(?:id)?(?:{PERSON})(?:{NUMBER})?|(?:first|last|full|given|family|sur)?names?|birthda(?:te|y)|dateofbirth|dob|ssn"
    f"|address|e?mail|phone"
)
PATIENT_FOLDER = re.compile(rf"(?:{PERSON}|{EVENT}|p|s|c|id)?(?:{NUMBER})?\d+\w?")  # patient_12, P012, 7
# A name of a file as P012_left, bus_0001-r, 17_2: a number, then a side, a view or an index
NUMBERED_FILE = re.compile(
    r"(?P<patient>.*\d)[-_. ]+"
    r"(?:(?P<side>l|r|s|left|right|lt|rt|le|ri|cc|mlo|links|rechts|gauche|droite|izq|der)(?:[-_. ]*\d{1,3})?|\d{1,3})",
    re.IGNORECASE,
)
ENDS_IN_ID = re.compile(r"[\W_](?i:u?ids?)$|[a-z](?:ID|Id|UID)s?$")  # busi_id, AnonID
Link = tuple[str, str]  # two files of one patient


@dataclass(frozen=True)
class Patients:
    """What is known of who is shown."""

    source: str = ""  # who said it; empty where nobody did
    patients: int = 0
    images: int = 0  # whose patient is known
    total: int = 0  # images
    largest: int = 0  # most images of one patient
    notes: tuple[str, ...] = ()
    # file -> patient, as the table alone says it
    of_table: Mapping[str, str] = field(repr=False, default_factory=dict[str, str])

    def to_dict(self) -> dict[str, Any]:
        """What check.json holds."""
        names = ("source", "patients", "images", "total", "largest", "notes")
        return {name: getattr(self, name) for name in names}

    def sentences(self) -> tuple[str, ...]:
        if self.source == SIMULATED:
            return ("The images are simulated: they show no patient.",)
        if not self.source:
            said = (
                "Nobody said which images show one patient (dataset.group), so images of one patient may be on "
                "two sides of the split. Only near-duplicates are kept together."
            )
            return (said, *self.notes)
        without = self.total - self.images
        rest = f" {without} images have no patient and count as one each." if without else ""
        said = f"{self.patients} patients by {self.source}, at most {self.largest} images of one.{rest}"
        return (said, "The split keeps the images of a patient together.", *self.notes)


def with_patients(
    images: Sequence[SourceImage],
    rows: Mapping[str, Mapping[str, str]],
    table: Path | None,
    who: Mapping[str, tuple[str, str]],
    setting: str | None,
    folder_of: Mapping[str, str] | None = None,
) -> tuple[list[SourceImage], Patients]:
    """The images with their patient (`group`) and the other columns of the table.

    rows: path of a file -> its columns in the table. who: path -> (PatientID, StudyInstanceUID).
    folder_of: path -> its folder below its class, which may be empty. setting: dataset.group.
    UserError where a column or folders may say who is who and nobody said so, for a setting that
    does not fit, and for images without a row.
    """
    columns, folder_of = {name for row in rows.values() for name in row}, folder_of or {}
    _refuse_setting(setting, columns, table, who, folder_of)
    column = setting if setting in columns else None
    if setting is None:
        column = GROUP if GROUP in columns else _one_image_each(images, rows, columns)
    if column:
        _refuse_without_row(images, table, rows, column)
        if not any(rows.get(image.path, {}).get(column) for image in images):
            if setting is not None:
                raise UserError(
                    f"dataset.group: the column {column!r} of {table} is empty in all rows: name another one, or "
                    "`none` if nobody knows who is who"
                )
            column = None
    by_column = _by_column(images, rows, column) if column else []
    dicom_links: list[Link] = []
    dicom_known: set[str] = set()
    notes: list[str] = []
    if setting in (None, DICOM):
        dicom_links, dicom_known, notes = _by_dicom(images, who)
    if column:
        notes += _alike(column, {rows.get(image.path, {}).get(column, "") for image in images})
    path_links: list[Link] = []
    path_known: set[str] = set()
    if setting in (FOLDER, FILE) and not column:
        named = {image.file: folder_of.get(image.path, "") for image in images}
        if setting == FILE:
            named = {image.file: _patient_in_name(image.path) for image in images}
            if not any(named.values()):
                raise UserError("dataset.group: file, but no file's name ends in a side or an index after a number")
        path_links, path_known = _links(named), {file for file, name in named.items() if name}
    if setting is None and not column and not dicom_known:
        notes += _names_that_tell(images)
    beside_table = dicom_known | path_known
    known = beside_table | {image.file for image in images if column and rows.get(image.path, {}).get(column)}
    patient_of = _numbered(images, by_column + dicom_links + path_links, known)
    if setting is None and not known:
        _refuse_folders(images, folder_of)
    if setting is None:
        _refuse_identifiers(images, rows, table, columns - {column}, patient_of)
    grouped = []
    for image in images:
        row = dict(rows.get(image.path, {}))
        # A column that says who a patient is stays outside of every record.
        kept = {name: value for name, value in row.items() if not is_personal(name)}
        if column == GROUP or setting is not None:
            kept.pop(column or "", None)
        grouped.append(replace(image, group=patient_of.get(image.file), columns=kept))
    sources = [f"column `{column}` of {table.name}"] if column and table else []
    if path_known:
        sources.append("the names of their files" if setting == FILE else "the folders below the classes")
    elif dicom_known:
        sources.append("DICOM's PatientID and StudyInstanceUID")
    sizes: dict[str, int] = defaultdict(int)
    for patient in patient_of.values():
        sizes[patient] += 1
    of_table = _numbered(images, by_column, known - beside_table) if beside_table else patient_of
    found = Patients(
        " and ".join(sources), len(sizes), len(patient_of), len(images), max(sizes.values(), default=0),
        tuple(notes), of_table,
    )  # fmt: skip
    return grouped, found


def regrouped(before: Sequence[SourceImage], now: Sequence[SourceImage], patients: Patients) -> list[str]:
    """Files whose patient is another one than before, whatever patients are called.

    An older busray took patients from the table alone and kept its names.
    """
    with_all = _moved(before, {image.file: image.group for image in now})
    return with_all and _moved(before, {image.file: patients.of_table.get(image.file) for image in now})


def _moved(before: Sequence[SourceImage], group_of: Mapping[str, str | None]) -> list[str]:
    new_of: dict[str, str] = {}
    old_of: dict[str, str] = {}
    moved = []
    for image in sorted(before, key=lambda image: image.file):
        old, new = image.group, group_of.get(image.file)
        if image.file not in group_of or (not old and not new):
            continue
        if not old or not new or new_of.setdefault(old, new) != new or old_of.setdefault(new, old) != old:
            moved.append(image.file)
    return moved


def is_personal(column: str) -> bool:
    """Whether a column says, by its name, who a patient is."""
    return PERSONAL.fullmatch(plain_name(column)) is not None


def _refuse_setting(
    setting: str | None,
    columns: set[str],
    table: Path | None,
    who: Mapping[str, tuple[str, str]],
    folder_of: Mapping[str, str],
) -> None:
    if setting in (None, NOBODY, FILE) or setting in columns:
        return
    if setting == DICOM:
        if not any(any(ids) for ids in who.values()):
            raise UserError("dataset.group: dicom, but no image is DICOM with a PatientID or StudyInstanceUID")
        return
    if setting == FOLDER:
        if not any(folder_of.values()):
            raise UserError("dataset.group: folder, but no image lies in a folder below its class's folder")
        return
    there = f"{table} has the columns {', '.join(sorted(columns))}" if table else "there is no dataset.metadata"
    raise UserError(f"dataset.group: no column {setting!r}: {there}; `none` says that nobody knows who is who")


def _refuse_without_row(
    images: Sequence[SourceImage], table: Path | None, rows: Mapping[str, Mapping[str, str]], column: str
) -> None:
    # An image without a row would count as a patient of its own and could cross the split.
    without = sorted({image.path for image in images if image.path not in rows})
    if without:
        raise UserError(
            f"dataset.metadata: {table} has no row for {len(without)} images, such as {without[0]!r}; "
            f"with a column `{column}` every image needs one (its {column} may be empty)"
        )


def _by_column(images: Sequence[SourceImage], rows: Mapping[str, Mapping[str, str]], column: str) -> list[Link]:
    values = {image.file: rows.get(image.path, {}).get(column, "") for image in images}
    return _links(values)


def _one_image_each(
    images: Sequence[SourceImage], rows: Mapping[str, Mapping[str, str]], columns: set[str]
) -> str | None:
    """A column of identifiers of which each image has its own: every patient has one image."""
    paths = {image.path for image in images}
    for column in sorted(columns):
        if IDENTIFIER.fullmatch(plain_name(column)):
            values = [rows.get(path, {}).get(column) for path in paths]
            if all(values) and len(set(values)) == len(values):
                return column
    return None


def _by_dicom(
    images: Sequence[SourceImage], who: Mapping[str, tuple[str, str]]
) -> tuple[list[Link], set[str], list[str]]:
    """(links, files whose patient is known, notes)."""
    patients, studies = {}, {}
    for image in images:
        patients[image.file], studies[image.file] = who.get(image.path, ("", ""))
    notes = []
    known = {file for file in patients if patients[file] or studies[file]}
    paths = {image.path for image in images if image.file in known}
    shared = {patients[file] for file in known}
    if len(paths) > 1 and len(shared) == 1 and shared != {""}:
        # De-identified files often have one made-up PatientID for everybody.
        patients = dict.fromkeys(patients, "")
        notes = [f"All {len(paths)} DICOM files have one PatientID, as de-identified files have, so it is not used."]
        if len({studies[file] for file in known}) == 1:
            notes.append("They also have one StudyInstanceUID or none, so DICOM does not say who is who.")
            return [], set(), notes
        known = {file for file in known if studies[file]}
    return _links(patients) + _links(studies), known, notes


def _alike(column: str, values: set[str]) -> list[str]:
    """A note on identifiers that may be one written in two ways, each a patient of its own."""
    ways: dict[str, int] = defaultdict(int)
    for value in values:
        if value:
            ways[plain_name(re.sub(r"\.0$", "", value)).lstrip("0")] += 1
    twice = sum(n > 1 for n in ways.values())
    if not twice:
        return []
    return [
        f"In column `{column}` {twice} values are written in more than one way (case, spaces, leading zeros), and "
        "each way counts as another patient: write them alike if they are one."
    ]


def _patient_in_name(file: str) -> str:
    """What a file's name says before a side or an index; empty where it is not built so."""
    found = NUMBERED_FILE.fullmatch(PurePosixPath(file).stem)
    return found["patient"].casefold() if found else ""


def _names_that_tell(images: Sequence[SourceImage]) -> list[str]:
    """A note where most names hold a number before a side, or before an index that numbers only the
    few images of each number, as names of patients do."""
    paths_of: dict[str, list[str]] = defaultdict(list)
    paths = sorted({image.path for image in images})
    sides = 0
    for path in paths:
        if patient := _patient_in_name(path):
            paths_of[patient].append(path)
            found = NUMBERED_FILE.fullmatch(PurePosixPath(path).stem)
            sides += bool(found and found["side"])
    shared = [named for named in paths_of.values() if len(named) > 1]
    n = sum(map(len, paths_of.values()))
    if len(shared) < 2 or 10 * n < 9 * len(paths) or (not sides and 20 * len(paths_of) < n):
        return []
    return [
        f"Names of {n} files hold a number before a side or an index, such as {shared[0][0]} and {shared[0][1]}, with "
        f"{len(paths_of)} different numbers. If each is a patient, add --dataset.group=file, else --dataset.group=none."
    ]


def _links(value_of: Mapping[str, str]) -> list[Link]:
    """Pairs that join the files of one value; an empty value joins nothing."""
    files_of: dict[str, list[str]] = defaultdict(list)
    for file, value in value_of.items():
        if value:
            files_of[value].append(file)
    links = []
    for files in files_of.values():
        links += [(files[0], other) for other in files[1:]]
    return links


def _numbered(images: Sequence[SourceImage], links: Sequence[Link], known: set[str]) -> dict[str, str]:
    """file -> its patient, for files whose patient is known; numbered by their first files."""
    unit_of = {file: file for file in known}
    for files in connected(links):
        unit_of |= dict.fromkeys(files, files[0])
    patient_of: dict[str, str] = {}
    number_of: dict[str, int] = {}
    for file in sorted(image.file for image in images):
        if file in unit_of:
            number = number_of.setdefault(unit_of[file], len(number_of) + 1)
            patient_of[file] = f"patient {number}"
    return patient_of


def _refuse_identifiers(
    images: Sequence[SourceImage],
    rows: Mapping[str, Mapping[str, str]],
    table: Path | None,
    columns: set[str],
    patient_of: Mapping[str, str],
) -> None:
    """UserError for columns that seem to say who is who and would be torn by the split."""
    torn = {}
    for column in sorted(columns):
        units_of: dict[str, set[str]] = defaultdict(set)
        n = 0
        for image in images:
            value = rows.get(image.path, {}).get(column)
            if value:
                n += 1
                units_of[value].add(patient_of.get(image.file, f"file {image.path}"))
        repeats = any(len(units) > 1 for units in units_of.values())
        if repeats and _is_identifier(column, list(units_of), n):
            torn[column] = f"`{column}` ({len(units_of)} values for {n} images)"
    if torn:
        flag = shlex.quote(f"--dataset.group={next(iter(torn))}")
        raise UserError(
            f"dataset.metadata: {table} has {'a column' if len(torn) == 1 else 'columns'} that may say which images "
            f"show one patient: {', '.join(torn.values())}. Images of one patient must not be on two sides of the "
            f"split. Add {flag} if it is the patient, or --dataset.group=none if nobody knows who is who"
        )


def _refuse_folders(images: Sequence[SourceImage], folder_of: Mapping[str, str]) -> None:
    """UserError where the folders below the classes are named as patients are."""
    files_of: dict[str, set[str]] = defaultdict(set)
    for image in images:
        if folder_of.get(image.path):
            files_of[folder_of[image.path]].add(image.path)
    files = sum(map(len, files_of.values()))
    names = [re.sub(r"[\W_]+", "", folder.rpartition("/")[2].casefold()) for folder in files_of]
    like_patients = sum(bool(PATIENT_FOLDER.fullmatch(name)) for name in names)
    if len(names) > 2 and files > len(names) and 20 * len(names) >= files and 10 * like_patients >= 9 * len(names):
        raise UserError(
            f"images lie in folders below their class that may be one patient each ({len(names)} folders for {files} "
            "images). Images of one patient must not be on two sides of the split. Add --dataset.group=folder if each "
            "is a patient, or --dataset.group=none if nobody knows who is who"
        )


def _is_identifier(column: str, values: Sequence[str], images: int) -> bool:
    """values: distinct ones of the column, in so many images."""
    name = plain_name(column)
    if IDENTIFIER.fullmatch(name):
        return True
    if len(values) <= 2:
        return False
    numbered = sum(any(character.isdigit() for character in value) for value in values)
    if MAYBE_IDENTIFIER.fullmatch(name) and 2 * numbered >= len(values):
        return True
    # A name that nobody thought of. Devices and hospitals have few values for many images.
    few_each = 20 * len(values) >= images
    codes = sum(bool(CODE.fullmatch(value)) and not DATE.fullmatch(value) for value in values)
    return few_each and (bool(ENDS_IN_ID.search(column)) or 10 * codes >= 9 * len(values))
