/*
 * machine_fold_steps.c
 *		The fold of the log: records about one step.
 *
 * Called by machine_fold.c, whose rules hold here too: every apply_*() checks
 * first and returns false with the state untouched, and nothing depends on an
 * ephemeral field.
 */
#include "machine_private.h"

/* ------------------------------------------------------- shared effects */

static void
back_off(SagaState *state, SagaStep *step, SagaStepStatus status, SagaTime due)
{
	machine_set_status(state, step, status);
	step->due = due;
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
	if (step->replaced)
		return;					/* nothing follows this take any more */
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

/*
 * A claim that got no answer may have taken effect.  What was accepted then
 * never comes, so the call must ask again; what is sent only once may not.
 */
static void
doubt_accepted(SagaState *state, SagaStep *step)
{
	if (step->status == SAGA_STEP_ACCEPTED &&
		!node_of(state, step)->at_most_once)
		back_off(state, step, SAGA_STEP_BACKOFF, 0);
	else if (step->status == SAGA_STEP_UNDO_ACCEPTED)
		back_off(state, step, SAGA_STEP_UNDO_BACKOFF, 0);
	else
		return;
	step->sticky = true;
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
		doubt_accepted(state, step);
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
			state->back_to != SAGA_NO_NODE ||
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
		machine_choose_stuck(state);
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
		if (step->status == SAGA_STEP_UNDO_CALLING)
			step->broken = 0;		/* the action's */
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
	step->sticky = record->maybe;
	step->last_kind = SAGA_ANSWER_ACCEPTED; /* no answer yet: 'broken' stays */
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

/* ------------------------------------------------------- by kind */

bool
machine_apply_step(SagaState *state, const SagaRecord *record)
{
	switch (record->kind)
	{
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
		case SAGA_RECORD_RETRIED:
			return apply_retried(state, record);
		case SAGA_RECORD_REFUSED:
			return apply_refused(state, record);
		case SAGA_RECORD_ACCEPTED:
			return apply_accepted(state, record);
		default:
			return apply_wait(state, record);
	}
}
