"""Parts of a split by the names that people give them, in folders and in tables."""

import re
import unicodedata
from collections.abc import Iterable, Mapping

from cellbench.data.table import Part

PART_WORDS: Mapping[str, Part | None] = {
    **dict.fromkeys(("train", "training", "trainings", "trn", "trainset", "trainingset"), "train"),
    **dict.fromkeys(("trainingsset", "trainingsdaten", "trainingsdatensatz"), "train"),
    **dict.fromkeys(("trainingsbilder", "trainingsmenge", "trainingssatz"), "train"),
    **dict.fromkeys(("entrenamiento", "entrainement", "apprentissage"), "train"),
    **dict.fromkeys(("addestramento", "treinamento", "treino"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development", "tuning"), "val"),
    **dict.fromkeys(("valset", "validationset", "devset", "tuningset"), "val"),
    **dict.fromkeys(("validierung", "validierungs", "validierungsdaten"), "val"),
    **dict.fromkeys(("validierungsset", "validierungsdatensatz", "validierungsbilder"), "val"),
    **dict.fromkeys(("validierungsmenge", "validierungssatz"), "val"),
    **dict.fromkeys(("validacion", "validazione", "validacao"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "testset", "holdout", "heldout"), "test"),
    **dict.fromkeys(("testdaten", "testdatensatz", "testbilder", "testmenge"), "test"),
    **dict.fromkeys(("testsatz", "prueba", "pruebas"), "test"),
    **dict.fromkeys(("trainen", "trening", "treningowy", "treningowe", "egitim"), "train"),
    **dict.fromkeys(("обучение", "обучающая", "обучающии", "тренировка"), "train"),
    **dict.fromkeys(("训练", "训练集", "訓練", "訓練集", "学習", "学習用", "訓練用"), "train"),
    **dict.fromkeys(("validatie", "walidacja", "walidacyjny", "dogrulama", "валидация"), "val"),
    **dict.fromkeys(("验证", "验证集", "驗證", "驗證集", "検証", "検証用"), "val"),
    **dict.fromkeys(("testen", "testowy", "testowe", "teste", "prova", "essai"), "test"),
    **dict.fromkeys(("тест", "тестовая", "тестирование"), "test"),
    **dict.fromkeys(("测试", "测试集", "測試", "測試集", "テスト", "テスト用"), "test"),
    **dict.fromkeys(("eval", "evaluation", "evalset", "evaluationset"), None),
    **dict.fromkeys(("evaluierung", "evaluacion"), None),
}
"""Part that a word stands for, without accents; None if it depends on the other parts."""

_FILLERS = frozenset(
    {
        *("set", "data", "dataset", "images", "image", "imgs", "img", "split", "part", "the"),
        *("folder", "daten", "datensatz", "bilder", "datos", "imagenes", "conjunto", "jeu", "de"),
        *("donnees", "d"),
    }
)
"""Words that may stand beside that of a part."""


def parts_of(names: Mapping[str, str]) -> dict[str, Part]:
    """Return the parts that names stand for, by the keys of those that stand for one.

    An evaluation is the test part, or the validation part where there is another test part.

    Args:
        names: The names, such as those of folders, by any key.
    """
    words = {key: part_word(name) for key, name in names.items()}
    known = {key: part for key, word in words.items() if word and (part := PART_WORDS[word])}
    others: Part = "val" if "test" in known.values() else "test"
    undecided = {key: others for key, word in words.items() if word and PART_WORDS[word] is None}
    return known | undecided


_FLAGS = {
    **dict.fromkeys(("1", "1.0", "true", "t", "yes", "y"), True),
    **dict.fromkeys(("0", "0.0", "false", "f", "no", "n"), False),
}
"""Values of a column that says of each row whether it is in a part."""


def flagged_part(header: str) -> str | None:
    """Return the word for the part in a header such as `is_test`; None if there is none."""
    return part_word(" ".join(each for each in words_of(header) if each not in ("is", "in")))


def parts_of_flags(header: str, values: Iterable[str]) -> dict[str, Part]:
    """Return the part of each value of a column such as `is_test`; empty if it is no such column.

    Rows that are not in the part are training rows, or test rows if the column names the former.

    Args:
        header: The column's name.
        values: Its different values.
    """
    word = flagged_part(header)
    part = None if word is None else PART_WORDS[word]
    flags = {value: _FLAGS.get(value.casefold()) for value in values}
    if part is None or None in flags.values():
        return {}
    other: Part = "test" if part == "train" else "train"
    return {value: part if flag else other for value, flag in flags.items()}


def part_word(name: str) -> str | None:
    """Return the word of a name that stands for a part, if the name has no other meaning."""
    word = "".join(each for each in words_of(name) if each not in _FILLERS)
    return word if word in PART_WORDS else None


def words_of(name: str) -> list[str]:
    """Return the words of a name in lower case and without accents; numbers are no words."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    return re.findall(r"[^\W\d_]+", plain.lower())
