/*
 * machine_verbs.c
 *		The operator's verbs: whether one can still have an effect, and which.
 *
 * saga_machine_verb_refusal() may be called from everywhere; the rest by
 * machine.c alone, which afterwards does what has become possible.  A verb
 * that is refused must change nothing.
 */
#include "machine_private.h"

static const char *
cancel_refusal(const SagaState *state)
{
	const SagaStep *pivot = pivot_step(state);

	if (state->terminating)
		return "the saga is being terminated";
	if (!going_forward(state))
		return "the saga is already being undone";
	if (state->pivot_intent || pivot_phase(state) == PIVOT_PASSED)
		return "the pivot has been called, the saga can only go forward";
	if (pivot && pivot->in_flight)
		return "the pivot is running";
	if (state->hook.in_flight)
		return "the saga is ending";
	return NULL;
}

static const char *
hook_refusal(const SagaState *state, bool retry)
{
	if (state->hook.in_flight)
		return "the step is running";
	if (state->hook.status == SAGA_STEP_BACKOFF)
		return NULL;
	if (retry || !state->resumed || !all_settled(state) ||
		!has_ending_hook(state))
		return "the step has not been reached";
	return NULL;
}

static const char *
retry_refusal(const SagaState *state, int32 node)
{
	const SagaStep *step;
	bool		undo;

	if (state->terminating)
		return "the saga is being terminated";
	if (node == SAGA_NODE_END)
		return hook_refusal(state, true);
	if (!is_step(state, node))
		return "there is no such step";
	step = &state->steps[node];
	undo = undoing(state, step);
	if (step->replaced && !undo)
		return "the step was begun anew";
	if (step->in_flight)
		return "the step is running";
	if (step->claiming)
		return "an earlier verb on the step waits for its participant";
	if (undo ? step->status == SAGA_STEP_UNDO_STUCK ||
		step->status == SAGA_STEP_UNDO_BACKOFF ||
		step->status == SAGA_STEP_UNDO_ACCEPTED :
		step->status == SAGA_STEP_STUCK ||
		step->status == SAGA_STEP_BACKOFF ||
		step->status == SAGA_STEP_ACCEPTED)
		return NULL;
	return "the step does not wait for a retry";
}

static const char *
skip_refusal(const SagaState *state, int32 node, bool force)
{
	const SagaStep *step;
	bool		undo;

	if (state->terminating)
		return "the saga is being terminated";
	if (node == SAGA_NODE_END)
		return hook_refusal(state, false);
	if (!is_step(state, node))
		return "there is no such step";
	step = &state->steps[node];
	undo = undoing(state, step);
	if (step->replaced && !undo)
		return "the step was begun anew";
	switch (step->status)
	{
		case SAGA_STEP_IDLE:
			return undo ? "there is nothing to undo" :
				"the step has not been reached";
		case SAGA_STEP_CALLING:
		case SAGA_STEP_BACKOFF:
		case SAGA_STEP_STUCK:
		case SAGA_STEP_ACCEPTED:
			if (undo)
				return "the answer of its action is awaited";
			break;
		case SAGA_STEP_SLEEPING:
		case SAGA_STEP_AWAITING:
			break;
		case SAGA_STEP_EVALUATING:
			return "the step is running";
		case SAGA_STEP_SCOPED:
			return "the steps of its body are running";
		case SAGA_STEP_FAILED:
			if (undo || step->continued)
				return "the step is over";
			break;
		case SAGA_STEP_DONE:
			return undo ? "its undo has not been reached" :
				"the step is done";
		case SAGA_STEP_UNDO_CALLING:
		case SAGA_STEP_UNDO_BACKOFF:
		case SAGA_STEP_UNDO_STUCK:
		case SAGA_STEP_UNDO_ACCEPTED:
			break;
		default:
			return "the step is over";
	}
	if (step->in_flight && (is_local(state, step, undo) ||
							machine_op(state, step) == SAGA_OP_EVAL))
		return "the step is running";
	if (step->claiming && !force)
		return "an earlier verb on the step waits for its participant";
	return NULL;
}

static const char *
rerun_refusal(const SagaState *state, int32 node)
{
	const SagaStep *step;
	bool		after[SAGA_MAX_NODES];

	if (state->terminating)
		return "the saga is being terminated";
	if (state->direction == SAGA_UNDO)
		return "the saga is being undone";
	if (state->hook.status != SAGA_STEP_IDLE || state->hook.in_flight)
		return "the saga is ending";
	if (!is_step(state, node))
		return "there is no such step";
	step = &state->steps[node];
	if (!machine_may_restart(state, step))
		return step->replaced ? "the step was begun anew" :
			!step->settled && step->status != SAGA_STEP_STUCK &&
			step->status != SAGA_STEP_FAILED ? "the step is not over" :
			"what came after the step, or the pivot, cannot be repeated";
	machine_nodes_after(state->graph, step->node, after);
	for (int32 i = 0; i < state->nsteps; i++)
		if ((state->steps[i].in_flight || state->steps[i].claiming ||
			 state->steps[i].lost) &&
			machine_is_after(state, i, step->run, after))
			return "a step that follows it is running";
	return NULL;
}

static const char *
breakpoint_refusal(const SagaState *state, int32 node)
{
	if (state->terminating)
		return "the saga is being terminated";
	if (!is_step(state, node))
		return "there is no such step";
	if (state->steps[node].replaced)
		return "the step was begun anew";
	return state->steps[node].status == SAGA_STEP_IDLE ? NULL :
		"the step has begun";
}

const char *
saga_machine_verb_refusal(const SagaState *state, SagaVerb verb, int32 node,
						  bool force)
{
	if (verb == SAGA_VERB_UNDO_COMPLETED)
		return state->state != SAGA_COMPLETED ? "the saga is not completed" :
			pivot_phase(state) == PIVOT_PASSED ?
			"the pivot has happened, the saga cannot be undone" : NULL;
	if (SAGA_STATE_ENDED(state->state))
		return "the saga has ended";
	switch (verb)
	{
		case SAGA_VERB_CANCEL:
			return cancel_refusal(state);
		case SAGA_VERB_TERMINATE:
			return state->terminating && !force ?
				"the saga is already being terminated" : NULL;
		case SAGA_VERB_PAUSE:
			return state->terminating ? "the saga is being terminated" :
				state->paused ? "the saga is already paused" : NULL;
		case SAGA_VERB_RESUME:
			return state->paused || state->deadline_stuck ? NULL :
				"the saga is not paused";
		case SAGA_VERB_RETRY_STEP:
			return retry_refusal(state, node);
		case SAGA_VERB_SKIP_STEP:
			return skip_refusal(state, node, force);
		case SAGA_VERB_RERUN_FROM:
			return rerun_refusal(state, node);
		case SAGA_VERB_SET_DEADLINE:
			return state->terminating ? "the saga is being terminated" :
				going_forward(state) ? NULL : "the saga is being undone";
		case SAGA_VERB_BREAKPOINT:
			return breakpoint_refusal(state, node);
		default:
			return "there is no such verb";
	}
}

static void
skip_step(Machine *m, const SagaEvent *event)
{
	SagaState  *state = m->state;
	int32		i = event->node;
	bool		undo = i >= 0 && undoing(state, &state->steps[i]);
	SagaRecord	record;

	if (i == SAGA_NODE_END)
		record = machine_record(SAGA_RECORD_SKIPPED, i, SAGA_OP_HOOK);
	else if (!event->force &&
			 machine_is_doubtful(state, &state->steps[i]))
	{
		machine_claim(m, i, event->payload);
		return;
	}
	else
		record = machine_record(SAGA_RECORD_SKIPPED, i,
								undo ? SAGA_OP_UNDO : SAGA_OP_ACTION);
	record.payload = event->payload;
	machine_forget_calls(m, i);
	machine_emit(m, &record);
	if (undo)
		machine_undo_touch(m, i);
}

/* The record of a verb that concerns one step. */
static void
emit_for_step(Machine *m, SagaRecordKind kind, const SagaEvent *event)
{
	SagaRecord	record = machine_record(kind, event->node, SAGA_OP_ACTION);

	if (event->node == SAGA_NODE_END)
		record.op = SAGA_OP_HOOK;
	else if (undoing(m->state, &m->state->steps[event->node]))
		record.op = SAGA_OP_UNDO;
	if (kind == SAGA_RECORD_BREAKPOINT)
		record.value = event->value != 0;
	record.payload = event->payload;
	machine_emit(m, &record);
}

static void
rerun_from(Machine *m, const SagaEvent *event)
{
	SagaRecord	record = machine_record(SAGA_RECORD_RESTARTED, event->node,
										SAGA_OP_ACTION);

	record.payload = event->payload;
	machine_emit(m, &record);
}

static void
undo_completed(Machine *m, const SagaEvent *event)
{
	SagaRecord	record = machine_record(SAGA_RECORD_REOPENED, SAGA_NO_NODE,
										SAGA_OP_ACTION);

	m->state->resumed = true;
	record.cause = SAGA_CAUSE_CANCELLED;
	record.payload = event->payload;
	if (machine_emit(m, &record))
		machine_undo_begin(m);
}

static void
set_deadline(Machine *m, const SagaEvent *event)
{
	SagaRecord	record = machine_record(SAGA_RECORD_DEADLINE, SAGA_NO_NODE,
										SAGA_OP_ACTION);

	record.due = event->value >= SAGA_NEVER ? 0 : Max(event->value, 1);
	record.payload = event->payload;
	machine_emit(m, &record);
	machine_restart_calls(m->state);
}

/* The record of a verb that concerns the saga as a whole. */
static void
emit_verb(Machine *m, SagaRecordKind kind, const SagaEvent *event)
{
	SagaRecord	record = machine_record(kind, SAGA_NO_NODE, SAGA_OP_ACTION);

	record.payload = event->payload;
	machine_emit(m, &record);
}

void
machine_on_verb(Machine *m, const SagaEvent *event)
{
	SagaState  *state = m->state;

	m->out->ignored = saga_machine_verb_refusal(state, event->verb,
												event->node, event->force);
	if (m->out->ignored)
		return;
	if (state->seq == 0)
	{
		state->resumed = true;
		machine_emit_simple(m, SAGA_RECORD_STARTED, SAGA_NO_NODE, SAGA_OP_ACTION);
	}

	/* neither could go on while paused */
	if (state->paused && (event->verb == SAGA_VERB_CANCEL ||
						  event->verb == SAGA_VERB_TERMINATE))
	{
		machine_emit_simple(m, SAGA_RECORD_RESUMED, SAGA_NO_NODE, SAGA_OP_ACTION);
		machine_restart_calls(state);
	}
	switch (event->verb)
	{
		case SAGA_VERB_CANCEL:
			machine_turn(m, SAGA_CAUSE_CANCELLED, SAGA_NO_NODE, SAGA_NO_NODE,
						 event->payload);
			break;
		case SAGA_VERB_TERMINATE:
			if (!state->terminating)
				emit_verb(m, SAGA_RECORD_TERMINATING, event);
			if (event->force)
				machine_end(m, SAGA_TERMINATED, SAGA_CAUSE_OPERATOR);
			break;
		case SAGA_VERB_PAUSE:
			emit_verb(m, SAGA_RECORD_PAUSED, event);
			break;
		case SAGA_VERB_RESUME:
			emit_verb(m, SAGA_RECORD_RESUMED, event);
			machine_restart_calls(state);
			break;
		case SAGA_VERB_RETRY_STEP:
			if (state->deadline_stuck)
				machine_restart_calls(state);
			emit_for_step(m, SAGA_RECORD_RETRIED, event);
			break;
		case SAGA_VERB_RERUN_FROM:
			rerun_from(m, event);
			break;
		case SAGA_VERB_SET_DEADLINE:
			set_deadline(m, event);
			break;
		case SAGA_VERB_BREAKPOINT:
			emit_for_step(m, SAGA_RECORD_BREAKPOINT, event);
			break;
		case SAGA_VERB_UNDO_COMPLETED:
			undo_completed(m, event);
			break;
		default:
			skip_step(m, event);
			break;
	}
}
