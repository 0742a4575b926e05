/*
 * machine_answers.c
 *		What an answer means: of an action, a compensation, a claim, a hook;
 *		and what to do when none will come.
 *
 * Called by machine.c alone, which afterwards does what has become possible.
 * An answer makes at most the records of its own step here, never a decision
 * about another one; it must not send calls, except again one that was lost.
 */
#include "machine_private.h"

static SagaRecord
answer_record(const SagaEvent *event, bool done)
{
	SagaRecord	record = machine_record(done ? SAGA_RECORD_DONE :
									 SAGA_RECORD_FAILED,
									 event->node, event->op);

	record.answer = event->answer;
	record.payload = event->payload;
	return record;
}

static int32
plus_one(int32 n)
{
	return n < INT32_MAX ? n + 1 : n;
}

/*
 * A claim for a skip got no answer, but has taken effect, as the call's own
 * REFUSED now shows.
 */
static bool
skip_after_all(Machine *m, const SagaEvent *event)
{
	SagaState  *state = m->state;
	SagaStep   *step = &state->steps[event->node];

	if (event->answer != SAGA_ANSWER_REFUSED || !step->skip_tried ||
		(event->op == SAGA_OP_ACTION &&
		 (undoing(state, step) || state->terminating)))
		return false;
	machine_call_is_over(state, step);
	machine_forget_calls(m, event->node);
	machine_emit_simple(m, SAGA_RECORD_SKIPPED, event->node, event->op);
	if (event->op == SAGA_OP_UNDO)
		machine_undo_touch(m, event->node);
	return true;
}

/* Is a failed action, or expression, to be tried again? */
bool
machine_wants_retry(const Machine *m, int32 i, const SagaEvent *event,
					const SagaRecord *record)
{
	const SagaStep *step = &m->state->steps[i];
	const SagaNode *node = node_of(m->state, step);

	if (undoing(m->state, step) || m->state->terminating)
		return false;
	if (node->at_most_once && record->answer == SAGA_ANSWER_UNKNOWN)
		return false;
	switch (record->answer)
	{
		case SAGA_ANSWER_BROKEN:
			return step->broken + 1 < SAGA_BROKEN_LIMIT;
		case SAGA_ANSWER_TRANSIENT:
		case SAGA_ANSWER_UNKNOWN:
			return event->free || node->retry.max_attempts <= 0 ||
				record->attempt < node->retry.max_attempts ||
				node->after_pivot || (node->pivot && record->maybe);
		default:
			return false;
	}
}

static void
answer_action(Machine *m, const SagaEvent *event)
{
	SagaState  *state = m->state;
	SagaStep   *step = &state->steps[event->node];
	bool		local = is_local(state, step, false);
	bool		done = event->answer == SAGA_ANSWER_DONE;
	SagaRecord	record = answer_record(event, done);

	if (skip_after_all(m, event))
		return;
	record.attempt = event->free ? step->attempts : plus_one(step->attempts);
	if (done)
	{
		/* of a local action DONE is the truth, awaited or not */
		if (!machine_try_emit(m, &record))
		{
			m->out->ignored = "the answer is not awaited";
			return;
		}
		if (step->in_flight)
			machine_call_is_over(state, step);
		machine_forget_calls(m, event->node);
	}
	else if (event->answer == SAGA_ANSWER_ACCEPTED && !local &&
			 !undoing(state, step))
		machine_accept(m, event);
	else
	{
		/*
		 * "No" is certain of this attempt only.  A key that is refused stays
		 * refused, for earlier attempts too.
		 */
		if (event->answer == SAGA_ANSWER_ACCEPTED)
			record.answer = local ? SAGA_ANSWER_BROKEN : SAGA_ANSWER_UNKNOWN;
		record.maybe = !local && (step->sticky || step->lost ||
								  record.answer == SAGA_ANSWER_UNKNOWN);
		if (event->answer == SAGA_ANSWER_REFUSED)
		{
			record.answer = SAGA_ANSWER_DECLINED;
			record.maybe = false;
		}
		if (machine_wants_retry(m, event->node, event, &record))
			record.due = machine_retry_at(m, &node_of(state, step)->retry,
								  record.attempt, event->retry_after);
		if (step->in_flight)
			machine_call_is_over(state, step);
		machine_emit(m, &record);
		machine_set_lost(state, step, false);
	}
	if (undoing(state, step) && state->resumed)
		machine_undo_touch(m, event->node);
}

/*
 * One that is sent at most once has been sent, and nobody will hear of it:
 * that ends its attempts.
 */
bool
machine_give_up_once(Machine *m, int32 i)
{
	SagaState  *state = m->state;
	SagaStep   *step = &state->steps[i];
	SagaRecord	record = machine_record(SAGA_RECORD_FAILED, i, SAGA_OP_ACTION);

	if (!step->lost || in_undo_phase(step) || step->claiming ||
		undoing(state, step) || !node_of(state, step)->at_most_once)
		return false;
	record.answer = SAGA_ANSWER_UNKNOWN;
	record.maybe = true;
	record.attempt = plus_one(step->attempts);
	machine_emit(m, &record);
	machine_set_lost(state, step, false);
	return true;
}

/* Tell an operator of an undo or ending hook that fails, once. */
void
machine_report_failures(Machine *m, int32 node)
{
	SagaStep   *step = machine_step(m->state, node);

	if (m->state->terminating)
		return;
	if (node == SAGA_NODE_END)
	{
		if (step->status == SAGA_STEP_BACKOFF &&
			step->reason == SAGA_STUCK_NONE &&
			step->attempts >= SAGA_HOOK_LIMIT)
			machine_stuck(m, node, SAGA_OP_HOOK, SAGA_STUCK_HOOK_FAILS);
	}
	else if (step->status == SAGA_STEP_UNDO_STUCK)
	{
		if (step->reason != SAGA_STUCK_BROKEN)
			machine_stuck(m, node, SAGA_OP_UNDO, SAGA_STUCK_BROKEN);
	}
	else if (step->status == SAGA_STEP_UNDO_BACKOFF &&
			 step->reason == SAGA_STUCK_NONE &&
			 step->attempts >= SAGA_UNDO_LIMIT)
		machine_stuck(m, node, SAGA_OP_UNDO, SAGA_STUCK_UNDO_FAILS);
}

static void
answer_undo(Machine *m, const SagaEvent *event)
{
	SagaState  *state = m->state;
	SagaStep   *step = &state->steps[event->node];
	const SagaNode *node = node_of(state, step);
	bool		local = is_local(state, step, true);
	bool		done = event->answer == SAGA_ANSWER_DONE;
	SagaRecord	record = answer_record(event, done);
	int32		attempts = undo_attempts(step);
	int			broken = step->status == SAGA_STEP_UNDO_BACKOFF ?
		step->broken : 0;

	if (skip_after_all(m, event))
		return;
	record.attempt = event->free ? attempts : plus_one(attempts);
	if (done)
	{
		if (!machine_try_emit(m, &record))
		{
			m->out->ignored = "the answer is not awaited";
			return;
		}
		if (step->in_flight)
			machine_call_is_over(state, step);
		machine_forget_calls(m, event->node);
	}
	else if (event->answer == SAGA_ANSWER_ACCEPTED && !local)
		machine_accept(m, event);
	else
	{
		record.maybe = !local && (step->sticky || step->lost ||
								  event->answer == SAGA_ANSWER_UNKNOWN);
		if (event->answer == SAGA_ANSWER_REFUSED)
			record.answer = SAGA_ANSWER_DECLINED;
		if (event->answer == SAGA_ANSWER_ACCEPTED)
			record.answer = SAGA_ANSWER_BROKEN;
		if (record.answer != SAGA_ANSWER_BROKEN || state->terminating ||
			broken + 1 < SAGA_BROKEN_LIMIT)
			record.due = machine_retry_at(m, &node->undo_retry, record.attempt,
								  event->retry_after);
		if (step->in_flight)
			machine_call_is_over(state, step);
		machine_emit(m, &record);
		machine_set_lost(state, step, false);
		machine_report_failures(m, event->node);
	}
	if (state->resumed)
		machine_undo_touch(m, event->node);
}

void
machine_answer_step(Machine *m, const SagaEvent *event)
{
	if (event->op == SAGA_OP_UNDO)
		answer_undo(m, event);
	else
		answer_action(m, event);
}

static void
answer_claim(Machine *m, const SagaEvent *event)
{
	SagaState  *state = m->state;
	SagaStep   *step = &state->steps[event->node];
	bool		undo = in_undo_phase(step);
	SagaRecord	record = answer_record(event,
									   event->answer == SAGA_ANSWER_DONE);

	machine_claim_is_over(state, step);
	record.attempt = plus_one(step->claim_tries);
	if (event->answer == SAGA_ANSWER_DONE)
	{
		machine_emit(m, &record);
		machine_forget_calls(m, event->node);
	}
	else if (event->answer == SAGA_ANSWER_REFUSED)
	{
		/* what is still out can no longer have an effect */
		machine_forget_calls(m, event->node);
		record.kind = SAGA_RECORD_REFUSED;
		record.op = undo ? SAGA_OP_UNDO : SAGA_OP_ACTION;
		machine_emit(m, &record);
		if (step->refused)
			machine_emit_simple(m, SAGA_RECORD_SKIPPED, event->node,
						undo ? SAGA_OP_UNDO : SAGA_OP_ACTION);
	}
	else
	{
		/* a skip is given up; nobody would hear of another claim's end */
		if (state->terminating ||
			(!step->claim_skip && event->answer != SAGA_ANSWER_BROKEN &&
			 record.attempt < SAGA_CLAIM_LIMIT))
			record.due = machine_retry_at(m, &machine_own_retry, record.attempt,
								  event->retry_after);
		machine_emit(m, &record);
		if (undoing(state, step))
			machine_undo_settle(m, event->node);
		machine_restart_calls(state);
	}
	if (undoing(state, step))
		machine_undo_touch(m, event->node);
}

static void
answer_hook(Machine *m, const SagaEvent *event)
{
	SagaState  *state = m->state;
	SagaStep   *hook = &state->hook;
	SagaRecord	record = machine_record(SAGA_RECORD_HOOK, event->node,
									 SAGA_OP_HOOK);

	record.answer = event->answer;
	record.payload = event->payload;
	if (event->node == SAGA_NODE_ON_STUCK)
	{
		state->stuck_hook_out = false;
		state->in_flight--;
		machine_emit(m, &record);
		return;
	}
	record.attempt = event->free ? hook->attempts : plus_one(hook->attempts);
	if (event->answer != SAGA_ANSWER_DONE)
		record.due = machine_retry_at(m, &machine_own_retry, record.attempt,
							  event->retry_after);
	if (hook->in_flight)
		machine_call_is_over(state, hook);
	machine_emit(m, &record);
	machine_report_failures(m, SAGA_NODE_END);
}

/* Is this call out? */
static bool
is_out(const SagaState *state, int32 node, SagaOp op)
{
	const SagaStep *step;

	if (op == SAGA_OP_HOOK)
		return node == SAGA_NODE_ON_STUCK ? state->stuck_hook_out :
			node == SAGA_NODE_END && state->hook.in_flight;
	if (!is_step(state, node))
		return false;
	step = &state->steps[node];
	if (op == SAGA_OP_CLAIM)
		return step->claim_out;
	return step->in_flight && machine_op(state, step) == op;
}

/* DONE of a local call is believed at any time: its effect is committed. */
static bool
is_local_truth(const SagaState *state, const SagaEvent *event)
{
	if (event->answer != SAGA_ANSWER_DONE)
		return false;
	if (event->op == SAGA_OP_HOOK)
		return event->node == SAGA_NODE_END && !hook_over(state) &&
			(!state->resumed || all_settled(state));
	return is_step(state, event->node) &&
		((event->op == SAGA_OP_ACTION &&
		  node_of(state, &state->steps[event->node])->kind == SAGA_NODE_STEP) ||
		 (event->op == SAGA_OP_UNDO &&
		  undoing(state, &state->steps[event->node]))) &&
		is_local(state, &state->steps[event->node],
				 event->op == SAGA_OP_UNDO);
}

void
machine_on_answer(Machine *m, const SagaEvent *event)
{
	SagaState  *state = m->state;

	if (event->answer > SAGA_ANSWER_ACCEPTED ||
		(!is_out(state, event->node, event->op) &&
		 !is_local_truth(state, event)))
	{
		m->out->ignored = "the answer is not awaited";
		return;
	}
	if (state->seq == 0)
		machine_emit_simple(m, SAGA_RECORD_STARTED, SAGA_NO_NODE, SAGA_OP_ACTION);
	switch (event->op)
	{
		case SAGA_OP_ACTION:
		case SAGA_OP_UNDO:
			machine_answer_step(m, event);
			break;
		case SAGA_OP_CLAIM:
			answer_claim(m, event);
			break;
		case SAGA_OP_EVAL:
			machine_answer_eval(m, event);
			break;
		default:
			answer_hook(m, event);
			if (hook_over(state))
				machine_end_in_direction(m);
			break;
	}
}

/* The worker is gone, and no outcome was recorded: the call goes out again. */
void
machine_on_lost(Machine *m, const SagaEvent *event)
{
	SagaState  *state = m->state;
	SagaStep   *step;

	if (!is_out(state, event->node, event->op))
	{
		m->out->ignored = "the call is not in flight";
		return;
	}
	if (event->node == SAGA_NODE_ON_STUCK)
	{
		state->stuck_hook_out = false;
		state->in_flight--;
		return;					/* advance() */
	}
	step = machine_step(state, event->node);
	if (event->op == SAGA_OP_CLAIM)
	{
		machine_claim_is_over(state, step);
		return;					/* the same */
	}
	machine_call_is_over(state, step);
	if (event->op == SAGA_OP_HOOK)
		return;					/* the same */
	if (event->op != SAGA_OP_EVAL)
		machine_set_lost(state, step,
						 !is_local(state, step, event->op == SAGA_OP_UNDO));
	if (event->op == SAGA_OP_ACTION && undoing(state, step))
		machine_undo_settle(m, event->node);
	else if (!machine_give_up_once(m, event->node))
		machine_restart_calls(state);
}
