"""The wordings: well formed, and those that score kept apart from those that edit."""

from acedit.knowledge.relations import held_out, mquake


def test_there_are_mquake_s_37() -> None:
    assert len(mquake()) == 37
    assert mquake()["P27"].prompt == "{} is a citizen of"
    assert mquake()["P449"].prompt == "The origianl broadcaster of {} is"


def test_every_template_has_one_place() -> None:
    for id, relation in mquake().items():
        scoring = held_out(id)
        assert scoring is not None
        for wording in (relation, scoring):
            for template in (*wording.prompts, *wording.questions, *wording.phrases):
                assert template.count("{}") == 1, (id, template)
            assert all(question.endswith("?") for question in wording.questions)
            assert not any(prompt.endswith("?") for prompt in wording.prompts)


def test_no_wording_both_edits_and_scores() -> None:
    for id, relation in mquake().items():
        scoring = held_out(id)
        assert scoring is not None
        edits = {*relation.prompts, *relation.questions, *relation.phrases}
        assert edits.isdisjoint({*scoring.prompts, *scoring.questions, *scoring.phrases}), id


def test_unknown_relations_have_no_scoring_wordings() -> None:
    assert held_out("citizen") is None
