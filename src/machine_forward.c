/*
 * machine_forward.c
 *		Going forward: beginning the steps that are ready, their expressions,
 *		bodies, and what follows from a step that failed.
 *
 * Called by machine.c while nothing holds new calls back; machine_answer_eval()
 * by machine_answers.c.  Steps are named by number here, never by a pointer
 * that outlives a record: bodies move the array.
 */
#include "machine_private.h"

/* ------------------------------------------------------- beginning */

static void
start_action(Machine *m, int32 i)
{
	SagaState  *state = m->state;
	SagaStep   *step = &state->steps[i];

	machine_set_lost(state, step, false);
	if (is_local(state, step, false))
		machine_set_status(state, step, SAGA_STEP_CALLING);
	else
		machine_emit_simple(m, SAGA_RECORD_INTENT, i, SAGA_OP_ACTION);
	machine_call(m, i, SAGA_OP_ACTION);
}

static void
start_eval(Machine *m, int32 i)
{
	SagaStep   *step = &m->state->steps[i];

	if (step->status == SAGA_STEP_IDLE)
		machine_set_status(m->state, step, SAGA_STEP_EVALUATING);
	machine_call(m, i, SAGA_OP_EVAL);
}

static void
await_signal(Machine *m, int32 i)
{
	const SagaNode *node = node_of(m->state, &m->state->steps[i]);
	int32		seq;

	if (machine_find_mail(m->state, node->signal, &seq))
		machine_emit_value(m, SAGA_RECORD_DONE, i, seq);
	else
		machine_emit_due(m, SAGA_RECORD_AWAITING, i,
						 machine_time_out(m, node->timeout));
}

/* Once more, if the loop's bound is the only one who says so. */
static void
next_iteration(Machine *m, int32 i)
{
	SagaState  *state = m->state;
	const SagaStep *step = &state->steps[i];
	const SagaNode *node = node_of(state, step);
	bool		room = state->graph->scopes[node->body].nnodes <=
		SAGA_MAX_STEPS - state->nsteps;
	bool		bound = node->max_iterations > 0 ?
		step->value >= node->max_iterations : !node->has_while;
	SagaRecord	record;

	if (!bound && room)
		machine_emit_value(m, SAGA_RECORD_ITERATION, i, step->value);
	else if (!node->has_while && room)
		machine_emit_simple(m, SAGA_RECORD_DONE, i, SAGA_OP_ACTION);
	else
	{
		record = machine_record(SAGA_RECORD_FAILED, i, SAGA_OP_EVAL);
		record.answer = SAGA_ANSWER_DECLINED;
		record.attempt = step->attempts;
		machine_emit(m, &record);
	}
}

/* A body's run is over, or the step has just been expanded, or its case chosen. */
void
machine_continue_body(Machine *m, int32 i)
{
	const SagaStep *step = &m->state->steps[i];
	const SagaNode *node = node_of(m->state, step);

	if (step->runs_open > 0 || step->in_flight || step->settled)
		return;
	if (node->kind != SAGA_NODE_LOOP)
		machine_emit_simple(m, SAGA_RECORD_DONE, i, SAGA_OP_ACTION);
	else if (node->has_while)
		start_eval(m, i);
	else
		next_iteration(m, i);
}

/* What the step does, once its condition (if any) is known to be true. */
static void
begin_work(Machine *m, int32 i)
{
	const SagaNode *node = node_of(m->state, &m->state->steps[i]);

	switch (node->kind)
	{
		case SAGA_NODE_STEP:
			start_action(m, i);
			break;
		case SAGA_NODE_SIGNAL:
			await_signal(m, i);
			break;
		case SAGA_NODE_LOOP:
			next_iteration(m, i);
			break;
		default:
			machine_emit_simple(m, SAGA_RECORD_DONE, i, SAGA_OP_ACTION);
			break;
	}
}

void
machine_begin_ready(Machine *m)
{
	SagaState  *state = m->state;
	SagaEval	eval;

	while (state->ready_head < state->ready.n && !state->paused)
	{
		int32		i = state->ready.items[state->ready_head];
		const SagaStep *step = &state->steps[i];

		if (step->replaced || undoing(state, step))
			;
		else if (step->status == SAGA_STEP_SCOPED)
			machine_continue_body(m, i);
		else if (step->status == SAGA_STEP_IDLE)
		{
			if (step->breakpoint)
			{
				machine_emit_value(m, SAGA_RECORD_BREAKPOINT, i, 2);
				return;
			}
			if (machine_needs_eval(state, step, &eval))
				start_eval(m, i);
			else
				begin_work(m, i);
		}
		state->ready_head++;
	}
}

/* The time for another attempt has come. */
void
machine_begin_again(Machine *m, int32 i)
{
	const SagaStep *step = &m->state->steps[i];
	SagaEval	eval;

	if (machine_needs_eval(m->state, step, &eval))
		start_eval(m, i);
	else if (node_of(m->state, step)->kind == SAGA_NODE_STEP)
		machine_call(m, i, SAGA_OP_ACTION);
	else
		begin_work(m, i);
}

/* ------------------------------------------------------- expressions */

static void
eval_failed(Machine *m, const SagaEvent *event, SagaAnswerKind answer)
{
	SagaState  *state = m->state;
	SagaStep   *step = &state->steps[event->node];
	SagaRecord	record = machine_record(SAGA_RECORD_FAILED, event->node,
										SAGA_OP_EVAL);

	record.payload = event->payload;
	record.answer = answer;
	record.attempt = event->free || step->attempts == INT32_MAX ?
		step->attempts : step->attempts + 1;
	if (machine_wants_retry(m, event->node, event, &record))
		record.due = machine_retry_at(m, &node_of(state, step)->retry,
									  record.attempt, event->retry_after);
	machine_emit(m, &record);
}

static void
emit_evaluated(Machine *m, const SagaEvent *event, SagaRecordKind kind)
{
	SagaRecord	record = machine_record(kind, event->node, SAGA_OP_EVAL);

	record.value = event->value;
	record.payload = event->payload;
	machine_emit(m, &record);
}

/* Is there room for so many elements? */
static bool
fits(const SagaState *state, const SagaStep *step, int64 n)
{
	int32		body = node_of(state, step)->body;

	return n <= (SAGA_MAX_STEPS - state->nsteps) /
		state->graph->scopes[body].nnodes;
}

void
machine_answer_eval(Machine *m, const SagaEvent *event)
{
	SagaState  *state = m->state;
	int32		i = event->node;
	SagaStep   *step = &state->steps[i];
	int64		value = event->value;
	SagaEval	eval;

	machine_needs_eval(state, step, &eval);
	machine_call_is_over(state, step);
	if (event->answer != SAGA_ANSWER_DONE)
	{
		eval_failed(m, event, event->answer == SAGA_ANSWER_DECLINED ||
					event->answer == SAGA_ANSWER_BROKEN ? event->answer :
					SAGA_ANSWER_TRANSIENT);
		return;
	}
	switch (eval)
	{
		case SAGA_EVAL_CONDITION:
		case SAGA_EVAL_CASES:
			if (eval == SAGA_EVAL_CONDITION ? value != 0 && value != 1 :
				value < -1 || value >= node_of(state, step)->ncases)
				eval_failed(m, event, SAGA_ANSWER_BROKEN);
			else
				emit_evaluated(m, event, SAGA_RECORD_CHOSEN);
			break;
		case SAGA_EVAL_ITEMS:
			if (value < 0)
				eval_failed(m, event, SAGA_ANSWER_BROKEN);
			else if (!fits(state, step, value))
				eval_failed(m, event, SAGA_ANSWER_DECLINED);
			else
				emit_evaluated(m, event, SAGA_RECORD_EXPANDED);
			break;
		case SAGA_EVAL_WHILE:
			if (value == 0)
				machine_emit_simple(m, SAGA_RECORD_DONE, i, SAGA_OP_ACTION);
			else
				next_iteration(m, i);
			break;
		case SAGA_EVAL_TIME:
			machine_emit_due(m, SAGA_RECORD_SLEEPING, i,
							 Min(Max(value, 1), SAGA_NEVER - 1));
			break;
	}
}

/* ------------------------------------------------------- failures */

/* Undo as far as the step's save-point, if that is still allowed. */
static bool
go_back(Machine *m, int32 i, PivotPhase phase)
{
	SagaState  *state = m->state;
	const SagaNode *node = node_of(state, &state->steps[i]);
	int32		savepoint = saga_machine_seen_from(state, i, node->savepoint);
	const SagaStep *step;
	const SagaNode *to;

	if (savepoint == SAGA_NO_NODE || state->hook.status != SAGA_STEP_IDLE)
		return false;
	step = &state->steps[savepoint];
	to = node_of(state, step);
	if (step->status != SAGA_STEP_DONE ||
		(to->max_tries > 0 && step->value >= to->max_tries) ||
		(to->before_pivot && phase != PIVOT_OPEN) ||
		state->graph->scopes[to->scope].nnodes >
		SAGA_MAX_STEPS - state->nsteps)
		return false;
	machine_turn(m, SAGA_CAUSE_DECLINED, i, savepoint, NULL);
	return true;
}

/* What follows from one failed step. */
static void
judge_step(Machine *m, int32 i)
{
	SagaState  *state = m->state;
	SagaStep   *step = &state->steps[i];
	const SagaNode *node = node_of(state, step);
	PivotPhase	phase;
	SagaEval	eval;

	if (step->refused)
	{
		machine_emit_simple(m, SAGA_RECORD_SKIPPED, i, SAGA_OP_ACTION);
		return;
	}
	if (step->last_kind == SAGA_ANSWER_BROKEN)
	{
		machine_stuck(m, i, SAGA_OP_ACTION, SAGA_STUCK_BROKEN);
		return;
	}
	if (node->on_failure == SAGA_FAILURE_CONTINUE ||
		(node->kind == SAGA_NODE_SIGNAL && node->timeout_continue &&
		 !machine_needs_eval(state, step, &eval)))
	{
		machine_emit_simple(m, SAGA_RECORD_CONTINUED, i, SAGA_OP_ACTION);
		return;
	}
	phase = pivot_phase(state);
	if (node->on_failure == SAGA_FAILURE_GOTO && go_back(m, i, phase))
		return;
	if (node->on_failure == SAGA_FAILURE_STUCK || node->after_pivot ||
		phase == PIVOT_PASSED)
	{
		machine_stuck(m, i, SAGA_OP_ACTION, SAGA_STUCK_DECLINED);
		return;
	}
	if (phase == PIVOT_OPEN)
	{
		machine_turn(m, SAGA_CAUSE_DECLINED, i, SAGA_NO_NODE, NULL);
		return;
	}

	/*
	 * Held until the pivot's outcome is known.  A pivot that was declined
	 * itself, but has an earlier attempt that may still arrive, is claimed:
	 * then it has happened or never will.
	 */
	if (!node->pivot || step->claiming)
		return;
	if (step->claim_failed)
		machine_stuck(m, i, SAGA_OP_ACTION, SAGA_STUCK_DECLINED);
	else
		machine_claim(m, i, NULL);
}

/* Go through those that failed; those held for the pivot stay listed. */
static void
judge_listed(Machine *m)
{
	SagaState  *state = m->state;
	int32		kept = 0;

	for (int32 k = 0; k < state->failed.n; k++)
	{
		int32		i = state->failed.items[k];
		SagaStep   *step = &state->steps[i];

		if (state->direction == SAGA_FORWARD &&
			step->status == SAGA_STEP_FAILED && !step->continued &&
			!step->replaced && !step->claiming)
			judge_step(m, i);
		step = &state->steps[i];
		if (step->status == SAGA_STEP_FAILED && !step->continued &&
			!step->replaced && !undoing(state, step))
			state->failed.items[kept++] = i;
		else
			step->listed = false;
	}
	state->failed.n = kept;
}

void
machine_judge_failures(Machine *m)
{
	PivotPhase	phase;

	/* again, if the consequence for the pivot decides on those held for it */
	do
	{
		phase = pivot_phase(m->state);
		judge_listed(m);
	} while (m->state->direction == SAGA_FORWARD &&
			 phase != pivot_phase(m->state));
}
