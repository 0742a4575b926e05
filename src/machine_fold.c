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

static inline bool
is_backoff(uint8 status)
{
	return status == SAGA_STEP_BACKOFF || status == SAGA_STEP_UNDO_BACKOFF;
}

/* Every change of a status, so that the counts hold. */
void
machine_set_status(SagaState *state, SagaStep *step, SagaStepStatus status)
{
	uint8		old = step->status;

	if (old == status)
		return;
	step->status = status;
	state->open += step_is_open(status) - step_is_open(old);
	if (state->direction == SAGA_FORWARD && !step->continued)
		state->nheld += (status == SAGA_STEP_FAILED) -
			(old == SAGA_STEP_FAILED);
	if (is_backoff(old))
	{
		state->nbackoff--;
		if (step->due <= state->due_min)
			state->due_stale = true;
	}
	if (is_backoff(status))
		state->nbackoff++;
}

static void
back_off(SagaState *state, SagaStep *step, SagaStepStatus status, SagaTime due)
{
	machine_set_status(state, step, status);
	step->due = due;
	state->due_min = Min(state->due_min, due);
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
static void
relieve(SagaState *state, SagaStep *step)
{
	if (step->reason == SAGA_STUCK_NONE)
		return;
	step->reason = SAGA_STUCK_NONE;
	state->nstuck--;
	choose_stuck(state);
}

static void
end_claim(SagaState *state, SagaStep *step)
{
	if (step->claiming)
		state->nclaims--;
	step->claiming = false;
	step->claim_skip = false;
	step->claim_due = 0;
}

/* Those that wait for the step need wait no longer. */
static void
release_followers(SagaState *state, SagaStep *step)
{
	const SagaNode *node = node_of(state, step);

	if (step->settled)
		return;
	step->settled = true;
	state->runs[step->run].open--;
	for (int32 i = 0; i < node->nnext; i++)
		machine_meet(state, sibling(state, step->run, node->next[i]));
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
	end_claim(state, step);
	relieve(state, step);
	machine_set_status(state, step, status);
	release_followers(state, step);
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
	end_claim(state, step);
	relieve(state, step);
	machine_set_status(state, step, SAGA_STEP_UNDONE);
}

/* ------------------------------------------------------- plausibility */

/* May a record about the running action of this step follow? */
static bool
action_open(const SagaState *state, const SagaStep *step)
{
	switch (step->status)
	{
		case SAGA_STEP_IDLE:
			return node_of(state, step)->action_local &&
				node_of(state, step)->kind == SAGA_NODE_STEP;
		case SAGA_STEP_CALLING:
		case SAGA_STEP_BACKOFF:
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

	if (state->direction != SAGA_UNDO || !node->has_compensation)
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

	return state->direction == SAGA_UNDO && node->has_compensation &&
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
	if (node_of(state, step)->action_local)
		return false;
	return step->status == SAGA_STEP_CALLING ||
		step->status == SAGA_STEP_BACKOFF ||
		step->status == SAGA_STEP_STUCK ||
		step->status == SAGA_STEP_FAILED;
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
			if (state->direction != SAGA_FORWARD ||
				step->status != SAGA_STEP_IDLE || step->unmet > 0 ||
				node_of(state, step)->action_local ||
				node_of(state, step)->kind != SAGA_NODE_STEP)
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
				!(node_of(state, step)->pivot &&
				  state->direction == SAGA_FORWARD &&
				  step->status == SAGA_STEP_FAILED);
			step->claiming = true;
			step->claim_failed = false;
			step->claim_tries = 0;
			step->claim_due = 0;
			state->nclaims++;
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
		/* local: the truth, whatever was recorded before it was read */
		if (!action_open(state, step) &&
			!(step->status == SAGA_STEP_IDLE && step->unmet == 0 &&
			  node->kind == SAGA_NODE_UNDO &&
			  state->direction == SAGA_FORWARD) &&
			!(step->status == SAGA_STEP_STUCK && node->action_local))
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
			if (state->direction != SAGA_UNDO || !node->has_compensation ||
				!node->compensation_local || node->action_local ||
				(step->status != SAGA_STEP_CALLING &&
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
		finish_undo(state, step);
	else
	{
		step->happened = true;
		finish_action(state, step, SAGA_STEP_DONE, record->seq);
	}
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
		end_claim(state, step);
		step->claim_failed = true;
	}
	else
	{
		step->claim_due = record->due;
		state->due_min = Min(state->due_min, record->due);
	}
	return true;
}

static bool
apply_failed_undo(SagaState *state, SagaStep *step, const SagaRecord *record)
{
	bool		first = step->status != SAGA_STEP_UNDO_BACKOFF &&
		step->status != SAGA_STEP_UNDO_STUCK;

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
	if (record->op != SAGA_OP_ACTION || !action_open(state, step))
		return false;

	if (record->answer != SAGA_ANSWER_BROKEN)
		step->broken = 0;
	else if (step->broken < UINT8_MAX)
		step->broken++;
	step->attempts = record->attempt;
	step->last_kind = record->answer;
	step->maybe = record->maybe && !is_local(state, step, false);
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

	if (!is_step(state, record->node) || state->direction != SAGA_FORWARD)
		return false;
	step = &state->steps[record->node];
	if (step->status != SAGA_STEP_FAILED || step->continued || step->claiming)
		return false;
	step->continued = true;
	step->done_at = record->seq;
	state->nheld--;
	release_followers(state, step);
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
		relieve(state, &state->hook);
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
	if (record->op != SAGA_OP_ACTION || state->direction != SAGA_FORWARD)
		return false;
	if (!action_open(state, step) && step->status != SAGA_STEP_STUCK &&
		!(step->status == SAGA_STEP_FAILED && !step->continued))
		return false;
	finish_action(state, step, SAGA_STEP_SKIPPED, record->seq);
	return true;
}

static bool
apply_undo(SagaState *state, const SagaRecord *record)
{
	const SagaStep *pivot = pivot_step(state);

	if (state->direction != SAGA_FORWARD || state->terminating ||
		pivot_phase(state) == PIVOT_PASSED ||
		(pivot && pivot->maybe) ||
		record->cause == SAGA_CAUSE_NONE ||
		record->cause > SAGA_CAUSE_OPERATOR ||
		(record->node != SAGA_NO_NODE && !is_step(state, record->node)))
		return false;

	/* no action will be tried again, so none of them needs anybody */
	for (int32 i = 0; i < state->nsteps; i++)
	{
		SagaStep   *step = &state->steps[i];

		step->reason = SAGA_STUCK_NONE;
		step->refused = false;
		if (step->status == SAGA_STEP_STUCK)
			machine_set_status(state, step, SAGA_STEP_FAILED);
	}
	memset(&state->hook, 0, sizeof(SagaStep));
	state->nstuck = 0;
	state->nheld = 0;
	state->deadline_stuck = false;
	choose_stuck(state);
	state->pivot_intent = false;
	state->direction = SAGA_UNDO;
	state->cause = record->cause;
	state->failed_node = record->node;
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
			state->direction != SAGA_FORWARD)
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
			if (state->direction == SAGA_FORWARD)
			{
				if (step->status != SAGA_STEP_FAILED || step->continued)
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

static bool
apply_retried(SagaState *state, const SagaRecord *record)
{
	SagaStep   *step;

	if (record->op == SAGA_OP_HOOK)
	{
		step = &state->hook;
		if (record->node != SAGA_NODE_END ||
			step->status != SAGA_STEP_BACKOFF)
			return false;
		relieve(state, step);
		step->due = 0;
	}
	else if (!is_step(state, record->node))
		return false;
	else
	{
		bool		undo = record->op == SAGA_OP_UNDO;

		step = &state->steps[record->node];
		if (undo ? (step->status != SAGA_STEP_UNDO_STUCK &&
					step->status != SAGA_STEP_UNDO_BACKOFF) :
			(record->op != SAGA_OP_ACTION ||
			 state->direction != SAGA_FORWARD ||
			 (step->status != SAGA_STEP_STUCK &&
			  step->status != SAGA_STEP_BACKOFF)))
			return false;
		relieve(state, step);
		back_off(state, step,
				 undo ? SAGA_STEP_UNDO_BACKOFF : SAGA_STEP_BACKOFF, 0);
		step->claim_failed = false;

		/* a call will go out without any further record */
		if (!undo && node_of(state, step)->pivot &&
			!node_of(state, step)->action_local)
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
	end_claim(state, step);
	relieve(state, step);
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
	step->refused = skip && state->direction == SAGA_FORWARD;
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
		relieve(state, hook);
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
	return SAGA_RUNNING;
}

bool
saga_machine_apply(SagaState *state, const SagaRecord *record)
{
	if (record->seq != state->seq + 1 || SAGA_STATE_ENDED(state->state) ||
		(record->kind == SAGA_RECORD_STARTED) != (state->seq == 0))
		return false;
	if (!apply_by_kind(state, record))
		return false;
	state->seq = record->seq;
	state->state = visible_state(state);
	return true;
}
