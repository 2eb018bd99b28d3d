"""Damaged files of all kinds end in one line, whatever is wrong with them."""

from scripts.measure.stress_files import find_fault, make_mutants, open_mutants, sound_pictures


def test_a_fault_is_found():
    assert find_fault(0, "") == find_fault(3, "cifar-cam: no picture\n") == ""
    assert find_fault(-11, "") == "exit code -11: "
    for code, errors in ((1, ""), (0, "a warning\n"), (3, ""), (3, "a\nb\n"), (3, "a\x1b[2J\n")):
        assert find_fault(code, errors)


def test_mutants_are_the_same_each_time_and_differ_from_their_files():
    files = sound_pictures()
    mutants = list(make_mutants(46, 3, files))
    assert mutants == list(make_mutants(46, 3, files))
    assert mutants != list(make_mutants(46, 4, files))
    assert sum(content != files[name.split("-", 1)[1]] for name, content in mutants) > 40


def test_no_damaged_file_gets_through(small_run):
    result = open_mutants(200, 0, small_run.folder)
    assert result["failed"] == []
    assert sum(result["exit codes"].values()) == result["mutants"] == 200
    assert set(result["exit codes"]) <= {"0", "2", "3"}
    assert min(result["exit codes"]["0"], result["exit codes"]["3"]) > 20  # some can still be read
