"""What the engine promises, and the tests that break when it is not kept. A promise without a test fails here."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

RULES = {
    "whoever changes a job settles its step in the same transaction: Oban's calls": [
        "test_obans_cancel_of_a_released_step_dooms_its_dependents_at_once",
        "test_obans_cancel_of_a_held_step_settles_it_before_its_dependencies",
        "test_obans_delete_of_a_step_counts_as_its_cancel",
        "test_obans_rescue_makes_a_step_run_again_and_settles_an_exhausted_one",
        "test_obans_staging_makes_a_scheduled_step_available_and_settles_nothing",
        "test_obans_update_of_scheduled_at_does_not_start_a_held_step",
    ],
    "whoever changes a job settles its step in the same transaction: a DBA, another node, a user's trigger": [
        "test_a_dba_who_updates_a_thousand_jobs_at_once_is_followed_in_that_transaction",
        "test_what_a_dba_rolls_back_never_happened",
        "test_a_completion_by_another_node_gives_a_null_result_and_releases",
        "test_a_cancel_from_a_users_own_trigger_counts",
    ],
    "held steps cost nothing": [
        "test_a_step_with_dependencies_waits_suspended_and_a_root_is_available",
        "test_a_held_step_is_neither_claimed_nor_staged",
    ],
    "count down under a lock, do not look around": [
        "test_two_dependencies_that_settle_at_once_release_their_dependent_once",
        "test_many_acks_at_once_on_one_fan_in_release_it_once",
        "test_dependencies_that_settle_in_one_ack_are_counted_one_by_one",
    ],
    "settling is small functions in files of their own": [
        "test_every_function_is_a_file_of_its_own_without_dynamic_sql_or_a_look_at_its_depth",
        "test_every_statement_says_first_what_it_is",
    ],
    "workflows are locked in the order of their ids": ["test_workflows_are_locked_in_the_order_of_their_ids"],
    "nobody waits for a job row while holding a workflow row": [
        "test_an_ack_never_waits_for_a_dependents_job_and_owes_the_release",
        "test_a_cancel_that_is_owed_to_a_doomed_steps_job_is_found_by_the_sweep",
        "test_obans_cancel_of_held_steps_and_acks_of_their_dependencies_do_not_deadlock",
    ],
    "what is owed is found": [
        "test_an_ack_never_waits_for_a_dependents_job_and_owes_the_release",
        "test_sweeps_at_once_on_many_nodes_pay_each_debt_once",
        "test_what_is_owed_to_a_deleted_job_is_forgotten",
    ],
    "in Baton's own ack errors propagate": [
        "test_an_error_in_the_ack_propagates_and_undoes_all_of_it",
        "test_a_failed_ack_is_tried_again_although_nothing_wakes_the_queue",
    ],
    "a foreign statement does not fail; what failed is written down and repaired": [
        "test_a_plain_statement_never_fails_because_a_step_could_not_settle",
        "test_a_plain_delete_never_fails_because_a_step_could_not_settle",
        "test_a_sweep_that_still_cannot_repair_one_step_pays_and_repairs_the_others",
    ],
    "errors of nobody's fault reach the caller": [
        "test_an_error_that_nobody_is_to_blame_for_reaches_the_caller"
    ],
    "an audit finds nothing, unless something is wrong": [
        "test_the_audit_finds_what_the_trigger_could_not_see"
    ],
    "recursion ends by state, never by depth": [
        "test_every_function_is_a_file_of_its_own_without_dynamic_sql_or_a_look_at_its_depth",
        "test_a_cancel_from_a_users_own_trigger_counts",
    ],
    "a doomed subtree is cancelled in one call": [
        "test_a_doomed_subtree_is_cancelled_in_one_call_at_any_depth"
    ],
    "a held step's job is put back": [
        "test_obans_retry_of_a_held_step_puts_its_job_back",
        "test_a_held_steps_job_is_put_back_from_any_state_in_the_same_statement",
        "test_a_held_step_whose_job_was_let_through_is_not_run_and_goes_back",
    ],
    "steps are found by job id, never by meta": [
        "test_obans_update_of_a_job_may_overwrite_its_meta_without_losing_the_step"
    ],
    "plans are pinned": [
        "test_every_function_that_is_called_from_outside_has_its_plans_pinned",
        "test_a_hot_statement_reads_no_table_as_a_whole",
        "test_acks_claims_and_sweeps_scan_no_table",
        "test_work_does_not_grow_with_what_was_inserted_since_its_plan_was_made",
    ],
    "functions run with their owner's rights, on a fixed search path, without foreign keys": [
        "test_triggers_have_their_owners_rights_and_a_fixed_search_path_and_nothing_else_has",
        "test_a_strangers_search_path_does_not_change_what_the_functions_read",
        "test_obans_type_and_tables_can_be_dropped_for_nothing_of_batons_depends_on_them",
    ],
    "one call acks, writes results, settles and claims": [
        "test_an_ack_writes_state_result_and_release_in_one_commit",
        "test_an_ack_brings_the_next_work_of_its_queue",
        "test_results_are_written_from_fenced_rows_alone",
    ],
    "local queues wake by themselves, and no debounce delays a job": [
        "test_batons_own_notifications_are_dropped_on_arrival",
        "test_a_hop_between_two_steps_waits_for_no_debounce_and_no_poll",
    ],
    "what was claimed in vain is given back": [
        "test_what_was_claimed_is_given_back_if_the_queue_changed_its_mind_before_the_hand_over",
        "test_a_claimed_job_that_never_started_goes_back_with_its_attempt",
        "test_an_ack_whose_commit_was_not_heard_of_is_not_counted_twice",
        "test_jobs_that_a_producer_claimed_without_knowing_go_back",
    ],
    "a failed ack is retried": ["test_a_failed_ack_is_tried_again_although_nothing_wakes_the_queue"],
    "notifications go only where someone listens": [
        "test_nothing_is_notified_where_no_other_producer_listens",
        "test_another_nodes_queue_is_woken_once_for_each_queue_and_transaction",
        "test_what_settles_is_notified_to_topics_with_a_live_lease_alone",
        "test_a_rolled_back_release_is_not_notified",
    ],
    "gates and results never read a row that Oban prunes": [
        "test_obans_pruner_takes_nothing_from_a_running_workflow",
        "test_results_keep_their_type_after_oban_pruned_the_jobs",
    ],
    "a claim locks no counter": ["test_a_claim_does_not_touch_the_workflow_row"],
}

INVARIANTS = {
    "a step runs only after its dependencies settled in a way it accepts": [
        "test_a_step_is_released_by_its_last_dependency_and_no_earlier",
        "test_a_dependent_goes_on_only_if_it_ignores_that_very_state",
        "test_a_held_step_whose_job_was_let_through_is_not_run_and_goes_back",
        "test_a_snooze_and_a_retry_release_nothing",
    ],
    "a result is committed with its completion or not at all": [
        "test_a_backend_that_dies_in_the_middle_of_an_ack_leaves_neither_state_nor_result",
        "test_an_ack_writes_state_result_and_release_in_one_commit",
        "test_a_step_that_runs_when_baton_leaves_a_running_oban_keeps_its_result",
    ],
    "each workflow finishes, with one completion": [
        "test_a_workflow_finishes_with_its_last_step_and_has_one_completion_row",
        "test_a_hundred_workflows_settled_in_one_statement_each_finish_once",
        "test_a_failure_that_every_dependent_ignores_is_excused",
        "test_a_failure_that_one_dependent_minds_is_not_excused",
    ],
    "no rows never mean satisfied; an empty workflow is done": [
        "test_an_empty_workflow_is_finished_when_it_is_inserted",
        "test_an_empty_workflow_has_finished_when_it_is_inserted",
        "test_illegal_rows_are_refused",
    ],
    "no step is stuck": [
        "test_an_ack_never_waits_for_a_dependents_job_and_owes_the_release",
        "test_the_audit_finds_what_the_trigger_could_not_see",
        "test_a_release_by_a_plain_statement_wakes_every_node",
    ],
    "a rescue leaves alone what is slow": ["test_a_rescue_leaves_a_slow_step_of_a_live_process_alone"],
    "a late write changes nothing": [
        "test_a_late_ack_of_an_earlier_attempt_changes_nothing",
        "test_the_same_ack_again_changes_nothing",
        "test_settling_a_step_that_has_settled_changes_nothing",
        "test_a_value_is_stored_in_its_own_commit_and_only_by_the_attempt_that_holds_the_job",
    ],
    "unknown cost is null": ["test_there_is_no_table_of_costs_yet_so_none_of_them_can_be_wrong"],
    "work per settled edge does not grow": [
        "test_the_work_of_an_ack_does_not_grow_with_the_tables",
        "test_work_does_not_grow_with_what_was_inserted_since_its_plan_was_made",
        "test_the_work_of_a_batch_is_less_than_that_of_its_acks_one_by_one",
    ],
    "nothing of a live workflow is pruned": ["test_obans_pruner_takes_nothing_from_a_running_workflow"],
    "plain jobs neither fail, wait nor slow down": [
        "test_plain_jobs_have_no_step_and_cost_the_trigger_nothing_but_a_look",
        "test_ordinary_jobs_run_beside_steps_as_with_oban_alone",
        "test_a_row_that_nobody_expects_does_not_keep_its_neighbours_from_running",
        "test_an_ordinary_jobs_big_numbers_arrive_as_with_oban_alone",
        "test_an_update_that_changes_no_state_costs_plain_jobs_one_look_each",
        "test_a_users_own_trigger_may_name_its_tables_without_their_schema",
    ],
}

TRIGGER_DUTIES = {
    "a trigger for each event, without columns, one for TRUNCATE": [
        "test_there_is_one_trigger_for_each_event_and_none_for_columns",
        "test_truncating_the_job_table_cancels_what_had_not_settled",
    ],
    "it never raises on its own account": [
        "test_a_plain_statement_never_fails_because_a_step_could_not_settle",
        "test_a_plain_delete_never_fails_because_a_step_could_not_settle",
        "test_an_error_that_nobody_is_to_blame_for_reaches_the_caller",
    ],
    "job rows before workflow rows": [
        "test_an_ack_never_waits_for_a_dependents_job_and_owes_the_release",
        "test_obans_cancel_of_held_steps_and_acks_of_their_dependencies_do_not_deadlock",
        "test_workflows_are_locked_in_the_order_of_their_ids",
    ],
    "rights of its owner": [
        "test_a_role_that_may_only_write_jobs_can_end_steps",
        "test_nobody_calls_the_engines_functions_without_a_grant",
    ],
    "a completion elsewhere has a null result": [
        "test_a_completion_by_another_node_gives_a_null_result_and_releases"
    ],
    "a completed job that runs again is marked and not counted again": [
        "test_obans_retry_of_a_completed_step_runs_it_again_without_counting_it_again"
    ],
    "stricter isolation sees 40001": [
        "test_a_caller_in_repeatable_read_is_told_to_try_again",
        "test_the_engine_reads_committed_rows_whatever_the_databases_default_is",
        "test_a_caller_in_a_serializable_transaction_may_insert",
    ],
    "that the trigger is there is checked, and what it missed is found": [
        "test_what_changed_behind_the_triggers_back_is_found_and_followed",
        "test_a_trigger_that_was_turned_off_is_found_by_check_and_mended_by_up",
        "test_a_trigger_that_is_gone_is_found_and_made_again",
        "test_a_start_that_fails_leaves_nothing_behind_and_may_be_repeated",
    ],
    "the lock for its creation is asked for briefly": [
        "test_up_asks_for_the_job_table_again_and_again_while_a_transaction_holds_it",
        "test_up_takes_no_lock_when_all_is_there",
    ],
    "a hot row is written by batches": [
        "test_the_work_of_a_batch_is_less_than_that_of_its_acks_one_by_one",
        "test_a_claim_does_not_touch_the_workflow_row",
    ],
    "other nodes are woken once per queue, and schedules are honoured": [
        "test_another_nodes_queue_is_woken_once_for_each_queue_and_transaction",
        "test_scheduled_at_is_honoured_when_a_step_is_released",
    ],
    "nothing depends on Oban's type or table": [
        "test_obans_type_and_tables_can_be_dropped_for_nothing_of_batons_depends_on_them"
    ],
}

PROMISES = RULES | INVARIANTS | TRIGGER_DUTIES


def defined_tests() -> set[str]:
    found = set()
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found.add(node.name)
    return found


@pytest.mark.parametrize("promise", PROMISES)
def test_a_promise_names_tests_that_exist(promise: str) -> None:
    named = PROMISES[promise]
    assert named, "no test breaks when this is not kept"
    assert set(named) - defined_tests() == set(), "tests of these names are gone"


def test_no_promise_is_listed_twice() -> None:
    assert len(PROMISES) == len(RULES) + len(INVARIANTS) + len(TRIGGER_DUTIES)
