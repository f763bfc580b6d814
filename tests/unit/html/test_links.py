from csi_job.html.links import Link, page_links
from csi_job.work_folder import WorkFolder


def test_a_page_links_to_itself_and_to_the_pages_that_exist_or_will_soon(tmp_path):
    work = WorkFolder(tmp_path)
    report, card = work.report("it's a study"), work.latest.optimized_model.with_suffix(".html")
    report.parent.mkdir(parents=True)
    report.touch()
    assert page_links(work.latest, "it's a study", card, soon=[work.latest.evaluation_page("comparison")]) == [
        Link("Report", "hyperopt/it%27s%20a%20study_report.html"),
        Link("Comparison", "evaluation/comparison_plots.html"),
        Link("Card of the model", "optimized_model.html", is_current=True),
    ]
    own = work.final("it's a study")
    assert page_links(own, "it's a study", own.evaluation_page("optimized_model")) == [
        Link("Report", "../../../hyperopt/it%27s%20a%20study_report.html"),
        Link("Evaluation of the model", "optimized_model_plots.html", is_current=True),
    ]


def test_the_page_of_another_model_is_in_its_own_links(tmp_path):
    page = WorkFolder(tmp_path).latest.evaluation_page("other")
    assert page_links(WorkFolder(tmp_path).latest, "", page) == [Link("This page", "other_plots.html", is_current=True)]
