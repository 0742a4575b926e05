/*
 * machine_fold.c
 *		The fold of the log: what a record does to the state, and whether it
 *		can follow that state at all (see machine.h).
 *
 * saga_machine_apply() is the only writer of the lasting part of a SagaState:
 * machine.c applies each record it decides on, recovery applies what it reads.
 * Here nothing may depend on an ephemeral field, or recovery would arrive at
 * another state than the one that was lost.
 *
 * Every apply_*() checks first and returns false with the state untouched.
 */
#include "machine_private.h"

/* ------------------------------------------------------- shared effects */

/* Is something being done about the step, other than waiting? */
static bool
is_busy(const SagaState *state, const SagaStep *step)
{
	switch (step->status)
	{
		case SAGA_STEP_BACKOFF:
		case SAGA_STEP_UNDO_BACKOFF:
			return true;
		case SAGA_STEP_UNDO_CALLING:
			return !is_local(state, step, true);
		case SAGA_STEP_CALLING:
			if (!is_local(state, step, false))
				return true;
			/* fall through */
		case SAGA_STEP_IDLE:
		case SAGA_STEP_EVALUATING:
			/* what is ephemeral must not be told apart */
			return !undoing(state, step) && step->unmet == 0;
		default:
			return false;
	}
}

static bool
is_waiting(const SagaState *state, const SagaStep *step)
{
	switch (step->status)
	{
		case SAGA_STEP_SLEEPING:
		case SAGA_STEP_AWAITING:
		case SAGA_STEP_ACCEPTED:
			return !undoing(state, step);
		case SAGA_STEP_UNDO_ACCEPTED:
			return true;
		default:
			return false;
	}
}

/*
 * What the step adds to the counts.  Whoever changes a field that this looks
 * at takes the step out before and puts it in again after.
 */
void
machine_count(SagaState *state, const SagaStep *step, int32 by)
{
	if (step->replaced)
		return;
	if (step_is_open(step->status))
		state->open += by;
	if (step->status == SAGA_STEP_FAILED && !step->continued &&
		!undoing(state, step))
		state->nheld += by;
	if (is_busy(state, step))
		state->nbusy += by;
	if (is_waiting(state, step))
		state->nwaiting += by;
}

/* The direction has changed, or many steps have. */
void
machine_recount(SagaState *state)
{
	state->open = state->nheld = state->nbusy = state->nwaiting = 0;
	for (int32 i = 0; i < state->nsteps; i++)
		machine_count(state, &state->steps[i], 1);
}

/* Every change of a status, so that the counts hold. */
void
machine_set_status(SagaState *state, SagaStep *step, SagaStepStatus status)
{
	if (step->status == status)
		return;
	machine_count(state, step, -1);
	step->status = status;
	machine_count(state, step, 1);

	/* work for machine_judge_failures() and machine_deliver_mail() */
	if (status == SAGA_STEP_FAILED && !step->listed && !undoing(state, step))
	{
		step->listed = true;
		machine_push(state, &state->failed, index_of(state, step));
	}
	if (status == SAGA_STEP_AWAITING)
		machine_push(state, &state->awaiting, index_of(state, step));
}

static void
back_off(SagaState *state, SagaStep *step, SagaStepStatus status, SagaTime due)
{
	machine_set_status(state, step, status);
	step->due = due;
}

static void
choose_stuck(SagaState *state)
{
	state->stuck_node = SAGA_NO_NODE;
	state->stuck_reason = SAGA_STUCK_NONE;
	if (state->deadline_stuck)
		state->stuck_reason = SAGA_STUCK_DEADLINE;
	else if (state->hook.reason != SAGA_STUCK_NONE)
	{
		state->stuck_node = SAGA_NODE_END;
		state->stuck_reason = state->hook.reason;
	}
	else if (state->nstuck > 0)
	{
		int32		node = 0;

		while (state->steps[node].reason == SAGA_STUCK_NONE)
			node++;
		state->stuck_node = node;
		state->stuck_reason = state->steps[node].reason;
	}
}

/* The step needs nobody any more. */
void
machine_relieve(SagaState *state, SagaStep *step)
{
	if (step->reason == SAGA_STUCK_NONE)
		return;
	step->reason = SAGA_STUCK_NONE;
	state->nstuck--;
	choose_stuck(state);
}

static void
end_claim(SagaStep *step)
{
	step->claiming = false;
	step->claim_skip = false;
	step->claim_due = 0;
}

static void
finish_action(SagaState *state, SagaStep *step, SagaStepStatus status,
			  int32 seq)
{
	step->maybe = false;
	step->sticky = false;
	step->refused = false;
	step->broken = 0;
	step->due = 0;
	step->done_at = seq;
	end_claim(step);
	machine_relieve(state, step);
	machine_set_status(state, step, status);
	machine_settle(state, step);
	if (node_of(state, step)->pivot)
		state->pivot_intent = true;
}

static void
finish_undo(SagaState *state, SagaStep *step)
{
	step->undo_maybe = false;
	step->sticky = false;
	step->refused = false;
	step->broken = 0;
	step->due = 0;
	end_claim(step);
	machine_relieve(state, step);
	machine_set_status(state, step, SAGA_STEP_UNDONE);
}

/* ------------------------------------------------------- plausibility */

/* May a record about the running action of this step follow? */
static bool
action_open(const SagaState *state, const SagaStep *step)
{
	const SagaNode *node = node_of(state, step);

	if (node->kind != SAGA_NODE_STEP || step->replaced ||
		(node->has_condition && !step->evaluated))
		return false;
	switch (step->status)
	{
		case SAGA_STEP_IDLE:
			return node->action_local;
		case SAGA_STEP_CALLING:
		case SAGA_STEP_BACKOFF:
		case SAGA_STEP_ACCEPTED:
			return true;
		default:
			return false;
	}
}

/* The same of its compensation. */
static bool
undo_open(const SagaState *state, const SagaStep *step)
{
	const SagaNode *node = node_of(state, step);

	if (!undoing(state, step) || !node->has_compensation)
		return false;
	if (in_undo_phase(step))
		return true;
	return node->compensation_local && !step->claiming &&
		(step->status == SAGA_STEP_DONE ||
		 (step->status == SAGA_STEP_FAILED && step->maybe));
}

static bool
may_undo(const SagaState *state, const SagaStep *step)
{
	const SagaNode *node = node_of(state, step);

	return undoing(state, step) && node->has_compensation &&
		!node->compensation_local && !step->claiming &&
		(step->status == SAGA_STEP_DONE ||
		 (step->status == SAGA_STEP_FAILED && step->maybe));
}

static bool
may_claim(const SagaState *state, const SagaStep *step)
{
	if (step->claiming)
		return false;
	if (in_undo_phase(step))
		return !node_of(state, step)->compensation_local;
	if (!is_sent(state, step))
		return false;
	return step->status == SAGA_STEP_CALLING ||
		step->status == SAGA_STEP_BACKOFF ||
		step->status == SAGA_STEP_STUCK ||
		step->status == SAGA_STEP_ACCEPTED ||
		step->status == SAGA_STEP_FAILED;
}

/* Can the step be over now, by itself? */
static bool
may_be_done(const SagaState *state, const SagaStep *step,
			const SagaRecord *record)
{
	const SagaNode *node = node_of(state, step);
	bool		reached = step->unmet == 0 && !step->replaced &&
		!undoing(state, step) && (!node->has_condition || step->evaluated);
	bool		idle = step->status == SAGA_STEP_IDLE ||
		step->status == SAGA_STEP_BACKOFF;

	switch (node->kind)
	{
		case SAGA_NODE_STEP:
			/* local: the truth, whatever was recorded before it was read */
			return action_open(state, step) ||
				(step->status == SAGA_STEP_STUCK && !step->replaced &&
				 (node->action_local || step->maybe));
		case SAGA_NODE_UNDO:
		case SAGA_NODE_SAVEPOINT:
			return reached && idle;
		case SAGA_NODE_SLEEP:
			return reached && step->status == SAGA_STEP_SLEEPING;
		case SAGA_NODE_SIGNAL:
			if (!reached || !(idle || step->status == SAGA_STEP_AWAITING))
				return false;
			for (int32 i = 0; i < state->nmail; i++)
				if (state->mail[i].seq == record->value)
					return state->mail[i].signal == node->signal;
			return false;
		case SAGA_NODE_LOOP:
			return reached && step->runs_open == 0 &&
				(idle || step->status == SAGA_STEP_EVALUATING ||
				 step->status == SAGA_STEP_SCOPED);
		default:
			return reached && step->runs_open == 0 &&
				step->status == SAGA_STEP_SCOPED;
	}
}

/* Mail is taken by the step that waited for it. */
static void
take_mail(SagaState *state, int64 seq)
{
	int32		i = 0;

	while (state->mail[i].seq != seq)
		i++;
	state->nmail--;
	memmove(&state->mail[i], &state->mail[i + 1],
			sizeof(SagaMail) * (size_t) (state->nmail - i));
}

/* ------------------------------------------------------- one per kind */

static bool
apply_intent(SagaState *state, const SagaRecord *record)
{
	SagaStep   *step;

	if (!is_step(state, record->node))
		return false;
	step = &state->steps[record->node];
	switch (record->op)
	{
		case SAGA_OP_ACTION:
			if (undoing(state, step) || step->replaced ||
				step->status != SAGA_STEP_IDLE || step->unmet > 0 ||
				is_local(state, step, false) ||
				(node_of(state, step)->has_condition && !step->evaluated))
				return false;
			step->maybe = true;
			step->intent_at = record->seq;
			if (node_of(state, step)->pivot)
				state->pivot_intent = true;
			machine_set_status(state, step, SAGA_STEP_CALLING);
			return true;

		case SAGA_OP_UNDO:
			if (!may_undo(state, step))
				return false;
			step->undo_maybe = true;
			step->sticky = false;
			step->skip_tried = false;
			step->attempts = 0;
			step->broken = 0;
			machine_set_status(state, step, SAGA_STEP_UNDO_CALLING);
			return true;

		case SAGA_OP_CLAIM:
			if (!may_claim(state, step))
				return false;

			/*
			 * A pivot that was declined while an earlier attempt is still
			 * unaccounted for is claimed by the machine itself, to know
			 * whether undo is possible.
			 */
			step->claim_skip = !state->terminating &&
				!(node_of(state, step)->pivot && !undoing(state, step) &&
				  step->status == SAGA_STEP_FAILED);
			step->claiming = true;
			step->claim_failed = false;
			step->claim_tries = 0;
			step->claim_due = 0;
			return true;

		default:
			return false;
	}
}

static bool
apply_done(SagaState *state, const SagaRecord *record)
{
	SagaStep   *step;
	const SagaNode *node;
	bool		undo;

	if (!is_step(state, record->node) || record->attempt < 0)
		return false;
	step = &state->steps[record->node];
	node = node_of(state, step);
	if (record->op == SAGA_OP_CLAIM)
	{
		if (!step->claiming)
			return false;
		undo = in_undo_phase(step);
	}
	else if (record->op == SAGA_OP_ACTION)
	{
		if (!may_be_done(state, step, record))
			return false;
		undo = false;
		step->attempts = record->attempt;
	}
	else if (record->op == SAGA_OP_UNDO)
	{
		/*
		 * The outcome of a local undo can outlive, in a crash, the record of
		 * the remote action that it undid.
		 */
		if (!undo_open(state, step))
		{
			if (!undoing(state, step) || !node->has_compensation ||
				!node->compensation_local || !is_sent(state, step) ||
				(step->status != SAGA_STEP_CALLING &&
				 step->status != SAGA_STEP_ACCEPTED &&
				 step->status != SAGA_STEP_BACKOFF))
				return false;
			step->happened = true;
			step->maybe = false;
		}
		undo = true;
		step->attempts = record->attempt;
	}
	else
		return false;

	step->last_kind = SAGA_ANSWER_DONE;
	if (undo)
	{
		finish_undo(state, step);
		return true;
	}
	if (node->kind == SAGA_NODE_SIGNAL)
		take_mail(state, record->value);
	else if (node->kind == SAGA_NODE_SAVEPOINT)
		step->value = 1;
	step->happened = true;
	finish_action(state, step, SAGA_STEP_DONE, record->seq);
	return true;
}

static bool
apply_failed_claim(SagaState *state, SagaStep *step, const SagaRecord *record)
{
	if (!step->claiming)
		return false;
	step->claim_tries = record->attempt;
	if (record->due == 0)
	{
		step->skip_tried |= step->claim_skip;
		end_claim(step);
		step->claim_failed = true;
	}
	else
		step->claim_due = record->due;
	return true;
}

static bool
apply_failed_undo(SagaState *state, SagaStep *step, const SagaRecord *record)
{
	bool		first = !in_undo_phase(step) ||
		step->status == SAGA_STEP_UNDO_CALLING;

	if (!undo_open(state, step))
		return false;

	/* the count of the action, if a local undo had no record before */
	if (first || record->answer != SAGA_ANSWER_BROKEN)
		step->broken = 0;
	if (record->answer == SAGA_ANSWER_BROKEN && step->broken < UINT8_MAX)
		step->broken++;
	step->attempts = record->attempt;
	step->last_kind = record->answer;
	step->undo_maybe = record->maybe && !is_local(state, step, true);
	step->sticky = step->undo_maybe;
	if (record->due != 0)
		back_off(state, step, SAGA_STEP_UNDO_BACKOFF, record->due);
	else
		machine_set_status(state, step, SAGA_STEP_UNDO_STUCK);
	return true;
}

/* An expression could not be evaluated, or a loop has come to its bound. */
static bool
eval_may_fail(const SagaState *state, const SagaStep *step)
{
	SagaEval	eval;

	if (!machine_needs_eval(state, step, &eval) || step->replaced)
		return false;
	if (step->status == SAGA_STEP_BACKOFF)
		return true;
	return step->unmet == 0 && !undoing(state, step) &&
		(step->status == SAGA_STEP_IDLE ||
		 step->status == SAGA_STEP_EVALUATING ||
		 (step->status == SAGA_STEP_SCOPED && step->runs_open == 0));
}

static bool
apply_failed(SagaState *state, const SagaRecord *record)
{
	SagaStep   *step;

	if (!is_step(state, record->node) || record->attempt < 0 ||
		record->due < 0 || record->answer == SAGA_ANSWER_DONE ||
		record->answer >= SAGA_ANSWER_REFUSED)
		return false;
	step = &state->steps[record->node];
	if (record->op == SAGA_OP_CLAIM)
		return apply_failed_claim(state, step, record);
	if (record->op == SAGA_OP_UNDO)
		return apply_failed_undo(state, step, record);
	if (record->op == SAGA_OP_EVAL)
	{
		if (!eval_may_fail(state, step))
			return false;
	}
	else if (record->op != SAGA_OP_ACTION ||
			 !(action_open(state, step) ||
			   (step->status == SAGA_STEP_AWAITING && record->due == 0)))
		return false;

	if (record->answer != SAGA_ANSWER_BROKEN)
		step->broken = 0;
	else if (step->broken < UINT8_MAX)
		step->broken++;
	step->attempts = record->attempt;
	step->last_kind = record->answer;
	step->maybe = record->maybe && is_sent(state, step);
	step->sticky = step->maybe;
	if (record->due != 0)
		back_off(state, step, SAGA_STEP_BACKOFF, record->due);
	else
		machine_set_status(state, step, SAGA_STEP_FAILED);
	if (record->due == 0 && !step->maybe && node_of(state, step)->pivot)
		state->pivot_intent = false;
	return true;
}

static bool
apply_continued(SagaState *state, const SagaRecord *record)
{
	SagaStep   *step;

	if (!is_step(state, record->node))
		return false;
	step = &state->steps[record->node];
	if (step->status != SAGA_STEP_FAILED || step->continued ||
		step->claiming || step->replaced || undoing(state, step))
		return false;
	machine_count(state, step, -1);
	step->continued = true;
	machine_count(state, step, 1);
	step->done_at = record->seq;
	machine_pass_cases(state, step);
	machine_settle(state, step);
	if (node_of(state, step)->pivot)
		state->pivot_intent = true;
	return true;
}

static bool
apply_skipped(SagaState *state, const SagaRecord *record)
{
	SagaStep   *step;

	if (record->op == SAGA_OP_HOOK)
	{
		if (record->node != SAGA_NODE_END ||
			state->hook.status == SAGA_STEP_DONE)
			return false;
		machine_relieve(state, &state->hook);
		state->hook.status = SAGA_STEP_SKIPPED;
		return true;
	}
	if (!is_step(state, record->node))
		return false;
	step = &state->steps[record->node];
	if (record->op == SAGA_OP_UNDO)
	{
		if (!undo_open(state, step))
			return false;
		finish_undo(state, step);
		return true;
	}
	if (record->op != SAGA_OP_ACTION || undoing(state, step) ||
		step->replaced)
		return false;
	if (!action_open(state, step) && step->status != SAGA_STEP_STUCK &&
		step->status != SAGA_STEP_BACKOFF &&
		step->status != SAGA_STEP_SLEEPING &&
		step->status != SAGA_STEP_AWAITING &&
		!(step->status == SAGA_STEP_FAILED && !step->continued))
		return false;
	machine_pass_cases(state, step);
	finish_action(state, step, SAGA_STEP_SKIPPED, record->seq);
	return true;
}

/* No action of the step will be tried again, so it needs nobody. */
static void
turn_step(SagaState *state, SagaStep *step)
{
	machine_relieve(state, step);
	step->refused = false;
	if (step->status == SAGA_STEP_STUCK)
		step->status = SAGA_STEP_FAILED;
	else if (step->status == SAGA_STEP_SLEEPING ||
			 step->status == SAGA_STEP_AWAITING)
		step->status = SAGA_STEP_NOT_TAKEN;
}

/* Of the saga, or of what follows a save-point. */
static bool
apply_undo(SagaState *state, const SagaRecord *record)
{
	const SagaStep *pivot = pivot_step(state);
	bool		back = record->value != 0;
	int32		savepoint = (int32) record->value - 1;
	bool		with_pivot = pivot != NULL;

	if (!(state->direction == SAGA_FORWARD ||
		  (!back && state->back_to != SAGA_NO_NODE)) || state->terminating ||
		record->cause == SAGA_CAUSE_NONE ||
		record->cause > SAGA_CAUSE_OPERATOR ||
		(record->node != SAGA_NO_NODE && !is_step(state, record->node)))
		return false;
	if (back)
	{
		const SagaStep *step;

		if (record->value < 0 || record->value > state->nsteps ||
			record->node == SAGA_NO_NODE)
			return false;
		step = &state->steps[savepoint];
		if (step->status != SAGA_STEP_DONE || step->replaced ||
			node_of(state, step)->kind != SAGA_NODE_SAVEPOINT)
			return false;
		with_pivot = node_of(state, step)->before_pivot;
	}
	if (with_pivot && (pivot_phase(state) == PIVOT_PASSED || pivot->maybe))
		return false;
	if (back && !machine_mark_region(state, savepoint, record->node))
		return false;

	state->direction = SAGA_UNDO;
	state->cause = record->cause;
	state->failed_node = record->node;
	state->back_to = back ? savepoint : SAGA_NO_NODE;
	for (int32 i = 0; i < state->nsteps; i++)
		if (undoing(state, &state->steps[i]))
			turn_step(state, &state->steps[i]);
	if (with_pivot)
		state->pivot_intent = false;
	if (!back)
	{
		machine_relieve(state, &state->hook);
		memset(&state->hook, 0, sizeof(SagaStep));
		state->deadline_stuck = false;
	}
	machine_recount(state);
	choose_stuck(state);
	return true;
}

static bool
apply_stuck(SagaState *state, const SagaRecord *record)
{
	SagaStep   *step;

	if (record->reason == SAGA_STUCK_NONE ||
		record->reason > SAGA_STUCK_HOOK_FAILS)
		return false;
	if (record->reason == SAGA_STUCK_DEADLINE)
	{
		if (record->node != SAGA_NO_NODE || state->deadline_hit ||
			!going_forward(state))
			return false;
		state->deadline_hit = true;
		state->deadline_stuck = true;
	}
	else
	{
		if (record->node == SAGA_NODE_END)
		{
			step = &state->hook;
			if (step->status != SAGA_STEP_BACKOFF)
				return false;
		}
		else if (!is_step(state, record->node))
			return false;
		else
		{
			step = &state->steps[record->node];
			if (!undoing(state, step))
			{
				if (step->status != SAGA_STEP_FAILED || step->continued ||
					step->replaced)
					return false;
				machine_set_status(state, step, SAGA_STEP_STUCK);
			}
			else if (step->status != SAGA_STEP_UNDO_BACKOFF &&
					 step->status != SAGA_STEP_UNDO_STUCK)
				return false;
		}
		if (step->reason == SAGA_STUCK_NONE)
			state->nstuck++;
		step->reason = record->reason;
	}
	state->stuck_node = record->node;
	state->stuck_reason = record->reason;
	if (state->graph->has_on_stuck && state->stuck_hooks < INT32_MAX)
	{
		state->stuck_hooks++;
		state->stuck_hook_due = true;
	}
	return true;
}

/* May an operator have the step called again? */
static bool
may_retry(const SagaState *state, const SagaStep *step, SagaOp op)
{
	if (op == SAGA_OP_UNDO)
		return undoing(state, step) &&
			(step->status == SAGA_STEP_UNDO_STUCK ||
			 step->status == SAGA_STEP_UNDO_BACKOFF ||
			 step->status == SAGA_STEP_UNDO_ACCEPTED);
	return op == SAGA_OP_ACTION && !undoing(state, step) &&
		!step->replaced &&
		(step->status == SAGA_STEP_STUCK ||
		 step->status == SAGA_STEP_BACKOFF ||
		 step->status == SAGA_STEP_ACCEPTED);
}

static bool
apply_retried(SagaState *state, const SagaRecord *record)
{
	SagaStep   *step;
	SagaEval	eval;

	if (record->op == SAGA_OP_HOOK)
	{
		step = &state->hook;
		if (record->node != SAGA_NODE_END ||
			step->status != SAGA_STEP_BACKOFF)
			return false;
		machine_relieve(state, step);
		step->due = 0;
	}
	else if (!is_step(state, record->node))
		return false;
	else
	{
		bool		undo = record->op == SAGA_OP_UNDO;

		step = &state->steps[record->node];
		if (!may_retry(state, step, record->op))
			return false;

		/* what was accepted may still be answered */
		if (step->status == SAGA_STEP_ACCEPTED ||
			step->status == SAGA_STEP_UNDO_ACCEPTED)
			step->sticky = true;
		machine_relieve(state, step);
		back_off(state, step,
				 undo ? SAGA_STEP_UNDO_BACKOFF : SAGA_STEP_BACKOFF, 0);
		step->claim_failed = false;

		/* a call will go out without any further record */
		if (!undo && node_of(state, step)->pivot &&
			!is_local(state, step, false) &&
			!machine_needs_eval(state, step, &eval))
			state->pivot_intent = true;
	}
	step->attempts = 0;
	step->broken = 0;
	if (state->deadline_stuck)
	{
		state->deadline_stuck = false;
		choose_stuck(state);
	}
	return true;
}

static bool
apply_refused(SagaState *state, const SagaRecord *record)
{
	SagaStep   *step;
	bool		skip;

	if (!is_step(state, record->node))
		return false;
	step = &state->steps[record->node];
	if (!step->claiming ||
		record->op != (in_undo_phase(step) ? SAGA_OP_UNDO : SAGA_OP_ACTION))
		return false;
	skip = step->claim_skip && !state->terminating;
	end_claim(step);
	machine_relieve(state, step);
	step->sticky = false;
	if (record->op == SAGA_OP_UNDO)
	{
		step->undo_maybe = false;
		step->refused = skip;
		machine_set_status(state, step, SAGA_STEP_UNDO_STUCK);
		return true;
	}
	step->maybe = false;

	/* when the saga is being undone, having no effect is all there is to it */
	step->refused = skip && !undoing(state, step);
	machine_set_status(state, step, SAGA_STEP_FAILED);
	if (!step->refused && node_of(state, step)->pivot)
		state->pivot_intent = false;
	return true;
}

static bool
apply_hook(SagaState *state, const SagaRecord *record)
{
	SagaStep   *hook = &state->hook;

	if (record->answer > SAGA_ANSWER_REFUSED || record->attempt < 0 ||
		record->due < 0)
		return false;
	if (record->node == SAGA_NODE_ON_STUCK)
	{
		if (state->stuck_hooks <= 0)
			return false;
		state->stuck_hooks--;
		state->stuck_hook_due = state->stuck_hooks > 0;
		return true;
	}
	if (record->node != SAGA_NODE_END || hook->status == SAGA_STEP_DONE ||
		hook->status == SAGA_STEP_SKIPPED)
		return false;
	hook->last_kind = record->answer;
	hook->attempts = record->attempt;
	hook->due = record->due;
	if (record->answer == SAGA_ANSWER_DONE)
	{
		machine_relieve(state, hook);
		hook->status = SAGA_STEP_DONE;
	}
	else
		hook->status = SAGA_STEP_BACKOFF;
	return true;
}

static bool
apply_ended(SagaState *state, const SagaRecord *record)
{
	bool		hook_over = state->hook.status == SAGA_STEP_DONE ||
		state->hook.status == SAGA_STEP_SKIPPED;

	if (record->cause > SAGA_CAUSE_OPERATOR)
		return false;
	switch (record->state)
	{
			/*
			 * A hook that is over ended the saga in its own transaction; a
			 * record of the last step may then have been lost in a crash.
			 */
		case SAGA_COMPLETED:
			if (state->direction != SAGA_FORWARD ||
				(!hook_over && (state->graph->has_on_completed ||
								state->open + state->nheld > 0)))
				return false;
			break;
		case SAGA_COMPENSATED:
			if (state->direction != SAGA_UNDO ||
				state->back_to != SAGA_NO_NODE ||
				(!hook_over && state->graph->has_on_compensated))
				return false;
			break;
		case SAGA_TERMINATED:
			if (!state->terminating)
				return false;
			break;
		default:
			return false;
	}
	state->state = record->state;
	state->cause = record->cause;
	return true;
}

/* ---- waiting ---- */

/* A remote call has been taken on; or it is, still. */
static bool
apply_accepted(SagaState *state, const SagaRecord *record)
{
	SagaStep   *step;

	if (!is_step(state, record->node) || record->due < 0)
		return false;
	step = &state->steps[record->node];
	if (record->op == SAGA_OP_UNDO)
	{
		if (!undo_open(state, step) || !in_undo_phase(step) ||
			is_local(state, step, true))
			return false;
		step->undo_maybe = true;
		machine_set_status(state, step, SAGA_STEP_UNDO_ACCEPTED);
	}
	else
	{
		if (record->op != SAGA_OP_ACTION || !action_open(state, step) ||
			!is_sent(state, step) || undoing(state, step))
			return false;
		step->maybe = true;
		machine_set_status(state, step, SAGA_STEP_ACCEPTED);
	}
	machine_relieve(state, step);
	step->broken = 0;
	step->last_kind = SAGA_ANSWER_ACCEPTED;
	step->due = record->due;
	return true;
}

static bool
apply_wait(SagaState *state, const SagaRecord *record)
{
	bool		sleeps = record->kind == SAGA_RECORD_SLEEPING;
	SagaStep   *step;
	const SagaNode *node;

	if (!is_step(state, record->node) || record->due < (sleeps ? 1 : 0))
		return false;
	step = &state->steps[record->node];
	node = node_of(state, step);
	if (node->kind != (sleeps ? SAGA_NODE_SLEEP : SAGA_NODE_SIGNAL) ||
		step->unmet > 0 || step->replaced || undoing(state, step) ||
		(node->has_condition && !step->evaluated) ||
		(step->status != SAGA_STEP_IDLE &&
		 step->status != SAGA_STEP_BACKOFF &&
		 !(sleeps && step->status == SAGA_STEP_EVALUATING)))
		return false;
	machine_set_status(state, step, sleeps ? SAGA_STEP_SLEEPING :
					   SAGA_STEP_AWAITING);
	step->due = record->due;
	return true;
}

static bool
apply_signal(SagaState *state, const SagaRecord *record)
{
	SagaMail   *mail;

	if (record->value < 0 || record->value >= state->graph->nsignals)
		return false;
	state->mail = machine_enlarge(state, state->mail, state->nmail,
								  &state->maxmail, 1, sizeof(SagaMail));
	mail = &state->mail[state->nmail++];
	mail->signal = (int32) record->value;
	mail->seq = record->seq;
	return true;
}

/* ---- operators ---- */

static bool
apply_deadline(SagaState *state, const SagaRecord *record)
{
	if (record->due < 0 || !going_forward(state))
		return false;
	state->deadline = record->due == 0 ? SAGA_NEVER : record->due;
	state->deadline_hit = false;
	if (state->deadline_stuck)
	{
		state->deadline_stuck = false;
		choose_stuck(state);
	}
	return true;
}

static bool
apply_breakpoint(SagaState *state, const SagaRecord *record)
{
	SagaStep   *step;

	if (!is_step(state, record->node))
		return false;
	step = &state->steps[record->node];
	switch (record->value)
	{
		case 0:
		case 1:
			if (step->status != SAGA_STEP_IDLE || step->replaced)
				return false;
			step->breakpoint = record->value == 1;
			return true;
		case 2:
			if (!step->breakpoint || step->unmet > 0 || state->paused ||
				state->terminating)
				return false;
			step->breakpoint = false;
			state->paused = true;
			return true;
		default:
			return false;
	}
}

/* A child's parent undoes it: what has been completed is undone after all. */
static bool
apply_reopened(SagaState *state, const SagaRecord *record)
{
	if (state->state != SAGA_COMPLETED || record->cause == SAGA_CAUSE_NONE ||
		record->cause > SAGA_CAUSE_OPERATOR ||
		pivot_phase(state) == PIVOT_PASSED)
		return false;
	memset(&state->hook, 0, sizeof(SagaStep));
	state->direction = SAGA_UNDO;
	state->cause = record->cause;
	state->pivot_intent = false;
	machine_recount(state);
	return true;
}

static bool
apply_by_kind(SagaState *state, const SagaRecord *record)
{
	switch (record->kind)
	{
		case SAGA_RECORD_STARTED:
			machine_start_run(state, 0);
			return true;
		case SAGA_RECORD_INTENT:
			return apply_intent(state, record);
		case SAGA_RECORD_DONE:
			return apply_done(state, record);
		case SAGA_RECORD_FAILED:
			return apply_failed(state, record);
		case SAGA_RECORD_CONTINUED:
			return apply_continued(state, record);
		case SAGA_RECORD_SKIPPED:
			return apply_skipped(state, record);
		case SAGA_RECORD_UNDO:
			return apply_undo(state, record);
		case SAGA_RECORD_STUCK:
			return apply_stuck(state, record);
		case SAGA_RECORD_PAUSED:
			if (state->paused || state->terminating)
				return false;
			state->paused = true;
			return true;
		case SAGA_RECORD_RESUMED:
			if (!state->paused && !state->deadline_stuck)
				return false;
			state->paused = false;
			state->deadline_stuck = false;
			choose_stuck(state);
			return true;
		case SAGA_RECORD_RETRIED:
			return apply_retried(state, record);
		case SAGA_RECORD_TERMINATING:
			if (state->terminating)
				return false;
			state->terminating = true;
			return true;
		case SAGA_RECORD_REFUSED:
			return apply_refused(state, record);
		case SAGA_RECORD_HOOK:
			return apply_hook(state, record);
		case SAGA_RECORD_ENDED:
			return apply_ended(state, record);
		case SAGA_RECORD_CHOSEN:
		case SAGA_RECORD_EXPANDED:
		case SAGA_RECORD_ITERATION:
		case SAGA_RECORD_RESTARTED:
			return machine_apply_scope(state, record);
		case SAGA_RECORD_SLEEPING:
		case SAGA_RECORD_AWAITING:
			return apply_wait(state, record);
		case SAGA_RECORD_ACCEPTED:
			return apply_accepted(state, record);
		case SAGA_RECORD_SIGNAL:
			return apply_signal(state, record);
		case SAGA_RECORD_DEADLINE:
			return apply_deadline(state, record);
		case SAGA_RECORD_BREAKPOINT:
			return apply_breakpoint(state, record);
		case SAGA_RECORD_REOPENED:
			return apply_reopened(state, record);
		default:
			return false;
	}
}

/* What users see, of all that is true at once. */
static SagaStateName
visible_state(const SagaState *state)
{
	if (SAGA_STATE_ENDED(state->state))
		return state->state;
	if (state->nstuck > 0 || state->deadline_stuck)
		return SAGA_STUCK;
	if (state->paused)
		return SAGA_PAUSED;
	if (state->nwaiting > 0 && state->nbusy == 0 && !state->terminating)
		return SAGA_WAITING;
	return SAGA_RUNNING;
}

bool
saga_machine_apply(SagaState *state, const SagaRecord *record)
{
	if (record->seq != state->seq + 1 ||
		SAGA_STATE_ENDED(state->state) !=
		(record->kind == SAGA_RECORD_REOPENED) ||
		(record->kind == SAGA_RECORD_STARTED) != (state->seq == 0))
		return false;
	if (!apply_by_kind(state, record))
		return false;
	state->seq = record->seq;
	if (record->kind == SAGA_RECORD_REOPENED)
		state->state = SAGA_RUNNING;
	state->state = visible_state(state);
	return true;
}
