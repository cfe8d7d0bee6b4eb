"""The proof: what is compared, of whom, against what, and how a difference is named.

Packages, each of which sees only those before it:

    cases       the table of cases, their numbers, and how two arrays are compared
    targets     what is judged: our backends, public implementations, a user's function or class
    dialects    the conventions in which implementations differ, by name
    reference   attention one number at a time, which checks the oracle
    mutants     planted bugs, which check the suite
    checks      one comparison each; all cases of one target; the whole run
    trace       stage by stage: where two attentions first differ
    report      tables, JSON, JUnit XML, HTML

`pytest_plugin` and `tests_for_targets` run the cases as tests: `pytest --pyargs conformance --gqa-target MODULE:NAME`.
"""
