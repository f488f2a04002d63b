"""A folder of data as the comparison of texts reads it."""


def write_data(folder, sentences=200, prose=40):
    """Numbered sentences with labels, and as many lines of prose under headings."""
    (folder / "sst2").mkdir(parents=True)
    (folder / "text").mkdir()
    lines = [f"sentence {index} of many\t1" for index in range(sentences)]
    half = sentences // 2
    (folder / "sst2/dev.tsv").write_text("\n".join(["sentence\tlabel", *lines[:half]]) + "\n")
    (folder / "sst2/train.tsv").write_text("\n".join(["sentence\tlabel", *lines[half:]]) + "\n")
    text = "\n".join(f" \n = Heading = \n line {index} of prose " for index in range(prose))
    (folder / "text/wikitext2-test.txt").write_text(text)
    return folder
