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
        "test_nobody_is_told_where_nobody_follows",
    ],
    "who follows is told of each change, whoever makes it, once it is committed": [
        "test_each_change_of_a_job_is_told_whoever_makes_it",
        "test_a_settled_step_without_a_job_is_told_of",
        "test_a_verb_is_told_to_whoever_follows_its_run",
        "test_what_is_rolled_back_is_not_told",
        "test_nothing_is_told_before_its_commit_and_nothing_that_was_rolled_back",
    ],
    "a lost notification costs a poll, a reconnect and an outage nothing": [
        "test_what_no_notification_told_is_found_by_polling",
        "test_a_run_that_came_and_went_unheard_of_is_told_all_the_same",
        "test_one_notification_of_many_may_be_lost",
        "test_a_reconnect_catches_up",
        "test_a_pause_is_doubled_up_to_a_bound_however_long_an_outage_lasts",
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
        "test_a_dependent_that_has_not_started_waits_again_for_what_is_retried",
        "test_nothing_is_retried_under_the_feet_of_a_step_that_runs",
        "test_a_step_behind_a_skipped_one_does_not_run_in_a_retry_or_a_rerun",
        "test_a_step_that_runs_on_failure_runs_after_one_and_is_skipped_after_none",
        "test_the_engine_does_what_the_model_does_whatever_happens",
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
        "test_each_generation_has_a_completion_of_its_own",
        "test_a_retry_of_a_live_run_keeps_its_generation",
        "test_steps_that_always_run_do_so_after_a_cancel_and_then_the_run_ends",
        "test_a_failure_that_ends_in_a_skipped_chain_of_any_depth_ends_the_run",
        "test_the_engine_does_what_the_model_does_whatever_happens",
    ],
    "no rows never mean satisfied; an empty workflow is done": [
        "test_an_empty_workflow_is_finished_when_it_is_inserted",
        "test_an_empty_workflow_has_finished_when_it_is_inserted",
        "test_illegal_rows_are_refused",
        "test_a_retry_where_nothing_failed_does_nothing",
        "test_a_rerun_of_a_run_without_steps_has_finished",
        "test_a_rerun_without_the_jobs_names_the_steps_and_writes_nothing",
    ],
    "no step is stuck": [
        "test_an_ack_never_waits_for_a_dependents_job_and_owes_the_release",
        "test_the_audit_finds_what_the_trigger_could_not_see",
        "test_a_release_by_a_plain_statement_wakes_every_node",
        "test_a_cancel_of_a_paused_run_lets_the_steps_run_that_always_do",
        "test_a_skip_that_is_owed_to_a_job_is_found_by_the_sweep",
        "test_two_transactions_come_to_what_they_come_to_one_after_the_other",
        "test_three_transactions_come_to_what_they_come_to_one_after_the_other",
    ],
    "a rescue leaves alone what is slow": ["test_a_rescue_leaves_a_slow_step_of_a_live_process_alone"],
    "a late write changes nothing": [
        "test_a_late_ack_of_an_earlier_attempt_changes_nothing",
        "test_the_same_ack_again_changes_nothing",
        "test_settling_a_step_that_has_settled_changes_nothing",
        "test_a_value_is_stored_in_its_own_commit_and_only_by_the_attempt_that_holds_the_job",
        "test_a_late_ack_of_an_earlier_generation_changes_nothing",
        "test_a_delivery_is_in_one_hand_at_a_time_and_due_again_when_its_lease_ran_out",
        "test_a_late_outcome_changes_nothing_whoever_it_comes_with",
        "test_only_the_attempt_that_holds_its_job_is_written",
        "test_a_report_sent_again_writes_nothing_twice",
    ],
    "unknown cost is null": ["test_a_cost_that_is_not_known_is_null_and_never_0"],
    "work per settled edge does not grow": [
        "test_the_work_of_an_ack_does_not_grow_with_the_tables",
        "test_work_does_not_grow_with_what_was_inserted_since_its_plan_was_made",
        "test_the_work_of_a_batch_is_less_than_that_of_its_acks_one_by_one",
        "test_a_verb_on_a_run_scans_no_table",
        "test_a_prune_that_goes_on_does_not_read_again_what_it_has_passed",
        "test_ten_thousand_steps_fan_in_once_and_none_costs_more_than_another",
    ],
    "nothing of a live workflow is pruned": [
        "test_obans_pruner_takes_nothing_from_a_running_workflow",
        "test_nothing_of_a_live_run_is_pruned_though_jobs_of_it_are_gone",
        "test_a_finished_run_stays_while_one_of_its_jobs_is_there",
    ],
    "plain jobs neither fail, wait nor slow down": [
        "test_plain_jobs_have_no_step_and_cost_the_trigger_nothing_but_a_look",
        "test_ordinary_jobs_run_beside_steps_as_with_oban_alone",
        "test_a_row_that_nobody_expects_does_not_keep_its_neighbours_from_running",
        "test_an_ordinary_jobs_big_numbers_arrive_as_with_oban_alone",
        "test_an_update_that_changes_no_state_costs_plain_jobs_one_look_each",
        "test_a_users_own_trigger_may_name_its_tables_without_their_schema",
        "test_a_plain_job_that_was_cancelled_while_it_ran_ends_cancelled_and_may_run_again",
    ],
}

VERBS = {
    "nothing that was cancelled starts, whatever crashes": [
        "test_a_step_that_ran_when_it_was_cancelled_ends_cancelled_whatever_it_comes_to",
        "test_a_cancelled_step_whose_process_died_does_not_run_again",
        "test_a_cancelled_step_that_is_given_back_does_not_run_again",
        "test_a_cancel_that_waited_for_a_retry_begins_again_with_the_jobs_that_were_revived",
        "test_jobs_are_cancelled_durably_also_while_they_run",
    ],
    "a cancel says who won, and says it again": [
        "test_a_cancel_that_waited_for_the_last_ack_says_that_the_run_completed",
        "test_a_second_cancel_changes_nothing_and_says_the_same",
        "test_a_cancel_of_a_finished_run_says_what_it_came_to",
        "test_a_cancel_of_steps_answers_for_each_in_the_order_asked",
    ],
    "nothing of a paused run starts": [
        "test_a_paused_run_starts_nothing_more_until_it_is_resumed",
        "test_a_step_that_would_run_again_waits_while_its_run_is_paused",
        "test_what_oban_would_start_of_a_paused_run_is_put_back",
        "test_a_retry_of_a_live_run_leaves_it_paused",
    ],
    "a retry rewinds just what hangs on a failure, once": [
        "test_a_retry_revives_what_failed_with_all_behind_it_and_keeps_the_rest",
        "test_a_completed_step_behind_a_failure_runs_again_with_the_new_inputs",
        "test_a_step_that_is_retried_finds_what_it_stored_unless_its_inputs_change",
        "test_retrying_twice_retries_once",
        "test_a_retry_without_the_jobs_names_the_steps_and_changes_nothing",
        "test_a_run_that_is_being_cancelled_is_not_retried",
    ],
    "a rerun leaves the other run as it was": [
        "test_a_rerun_copies_what_completed_before_its_start_and_runs_the_rest",
        "test_a_rerun_of_a_live_run_runs_what_has_not_completed_and_leaves_that_run_alone",
    ],
    "a deadline ends the run that it is of, and no later generation": [
        "test_a_run_whose_deadline_has_passed_is_ended_as_failed",
        "test_a_deadline_that_was_moved_meanwhile_ends_nothing",
        "test_a_retried_run_has_as_long_as_it_had_at_first_however_often",
    ],
    "a pruned run leaves nothing": [
        "test_a_pruned_run_leaves_no_row_in_any_table",
        "test_two_prunes_at_once_take_each_run_once",
        "test_a_run_whose_end_is_not_delivered_stays",
        "test_failures_that_nobody_hears_of_any_more_go_with_their_run",
    ],
    "an end is delivered at least once, from the commit that made it": [
        "test_the_end_of_a_run_is_delivered_to_each_consumer_there_is",
        "test_what_a_rolled_back_settle_would_have_delivered_is_not",
        "test_each_generation_is_delivered_with_its_own_end",
        "test_a_step_that_asked_for_it_hears_that_a_dependency_doomed_it_in_the_same_commit",
    ],
    "nobody meets a deadlock, in whatever order statements come": [
        "test_two_transactions_come_to_what_they_come_to_one_after_the_other",
        "test_three_transactions_come_to_what_they_come_to_one_after_the_other",
        "test_oban_cancels_held_steps_while_their_dependencies_are_acked",
    ],
    "the tests of all this notice when it is broken": [
        "test_the_machine_catches_a_broken_function",
        "test_the_schedules_catch_a_broken_function",
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
        "test_a_statement_does_not_fail_because_followers_cannot_be_told",
        "test_an_error_that_nobody_is_to_blame_for_reaches_the_caller",
        "test_an_error_of_nobodys_fault_reaches_whoever_made_the_change",
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

# What the README says Baton promises, line by line.
README = {
    "A step starts only when its dependencies settled in a way its policy accepts, and sees their committed results": [
        "test_the_engine_does_what_the_model_does_whatever_happens",
        "test_a_broken_engine_is_caught_and_the_real_one_is_clean",
        "test_a_short_run_of_everything_shows_no_violation",
    ],
    "It settles once; result, state, release of dependents, workflow state and event are one commit": [
        "test_an_error_in_the_ack_propagates_and_undoes_all_of_it",
        "test_two_dependencies_that_settle_at_once_release_their_dependent_once",
        "test_what_a_rolled_back_settle_would_have_delivered_is_not",
        "test_a_worker_that_was_frozen_changes_nothing_when_it_wakes",
    ],
    "A worker that dies loses its steps to another within `rescue_after` (default 60 s + tick), whatever the step's length": [
        "test_a_killed_workers_step_runs_elsewhere_and_a_slow_one_is_left_alone_on_a_node_of_the_same_name",
        "test_a_blocked_event_loop_is_no_death_and_is_told_of",
        "test_a_crash_of_the_server_takes_no_step_from_its_worker",
    ],
    "Every inserted workflow ends and leaves exactly one finished row; "
    "subscribers get it at least once, with an id to deduplicate": [
        "test_each_generation_is_delivered_with_its_own_end",
        "test_what_could_not_be_delivered_is_delivered_again_with_the_same_id",
        "test_what_a_dead_process_had_taken_is_delivered_by_another",
    ],
    "Losing every NOTIFY costs at most the poll interval": [
        "test_a_run_across_two_processes_ends_although_every_notification_is_lost",
        "test_who_waits_and_is_not_notified_finds_out_by_polling",
        "test_what_no_notification_told_is_found_by_polling",
    ],
    "Nothing of a live workflow is pruned": [
        "test_obans_pruner_at_one_second_takes_nothing_from_running_workflows",
        "test_a_live_run_keeps_every_row_though_its_jobs_are_gone",
        "test_a_retry_and_a_prune_at_once_leave_a_run_whole_or_gone",
    ],
}

PROMISES = README | RULES | INVARIANTS | VERBS | TRIGGER_DUTIES


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


def test_every_broken_variant_is_used_by_a_test() -> None:
    users = [*TESTS.glob("test_*.py"), TESTS / "lab" / "controls.py"]
    texts = "".join(path.read_text() for path in users)
    variants = {path.stem for path in (TESTS / "kit" / "broken").glob("*.sql")}
    assert {name for name in variants if f'"{name}"' not in texts} == set()


def test_no_promise_is_listed_twice() -> None:
    assert len(PROMISES) == len(README) + len(RULES) + len(INVARIANTS) + len(VERBS) + len(TRIGGER_DUTIES)


def test_the_readme_promises_what_is_tested() -> None:
    text = (TESTS.parent / "README.md").read_text(encoding="utf-8")
    table = text.partition("| Baton promises | Baton does not promise |\n|---|---|\n")[2].partition("\n\n")[0]
    assert [line.split("|")[1].strip() for line in table.splitlines()] == list(README)
