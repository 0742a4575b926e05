/*
 * calls.c
 *		From a command of the machine to a call: values bound, server found,
 *		handed to an executor or a connector; and the calls that wait until
 *		what decided them is durable.
 *
 * Called by turn.c and coordinator.c, in a transaction.  Owns the held calls
 * and the servers in use.
 */
#include "postgres.h"

#include <math.h>

#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

#include "callbacks.h"
#include "amend.h"
#include "child.h"
#include "compat.h"
#include "coordinator.h"
#include "errors.h"
#include "guc.h"
#include "procedure.h"
#include "two_phase.h"

/* A call that waits until its turn is durable. */
typedef struct Send
{
	pg_uuid_t	saga_id;
	SagaCommand command;
	bool		local;
} Send;

typedef struct SendBatch
{
	XLogRecPtr	lsn;
	int			n;
	int			at;				/* the next one: an error skips one, not all */
	Send	   *sends;
	MemoryContext context;
	struct SendBatch *next;
} SendBatch;

/* A server as a definition's owner reaches it, while nothing changed. */
typedef struct ServerKey
{
	Oid			owner;
	char		name[NAMEDATALEN];
} ServerKey;

typedef struct ServerEntry
{
	ServerKey	key;
	uint64		generation;
	SagaServer *server;
	MemoryContext context;
} ServerEntry;

static HTAB *servers;
static MemoryContext calls_context;
static Send *sends;				/* of the turn being gathered */
static int	nsends = 0,
			maxsends = 0;

/* Remote calls wait for the flush, local ones only for the commit. */
typedef struct SendQueue
{
	SendBatch  *first;
	SendBatch  *last;
} SendQueue;

static SendQueue held_remote;
static SendQueue held_local;

void
saga_calls_init(void)
{
	HASHCTL		ctl;

	calls_context = AllocSetContextCreate(TopMemoryContext, "saga held calls",
										  ALLOCSET_DEFAULT_SIZES);
	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(ServerKey);
	ctl.entrysize = sizeof(ServerEntry);
	servers = hash_create("saga servers", 64, &ctl, HASH_ELEM | HASH_BLOBS);
}

/* The call, that whose key a claim is about, or the expression. */
static SagaCall *
call_of(const SagaRun *run, const SagaCommand *c, SagaHook hook)
{
	return saga_exec_call(run->def, saga_node_of(run, c->node),
						  c->op == SAGA_OP_CLAIM ? c->target : c->op, hook,
						  c->op == SAGA_OP_EVAL ? c->eval : SAGA_EVAL_NONE);
}

/* Is nobody called, but the step offered to saga.take()? */
static bool
is_offer(const SagaRun *run, const SagaCommand *c)
{
	SagaCall   *call;

	if (c->node < 0 || c->op == SAGA_OP_EVAL)
		return false;
	call = call_of(run, c, SAGA_HOOK_NONE);
	return call && call->kind == SAGA_CALL_QUEUE;
}

/* Is it run by an executor? */
bool
saga_command_is_local(const SagaRun *run, const SagaCommand *c)
{
	const SagaCall *call;

	if (c->node < 0 || c->op == SAGA_OP_EVAL)
		return true;
	call = call_of(run, c, SAGA_HOOK_NONE);
	return call == NULL || (call->server == NULL && call->kind != SAGA_CALL_QUEUE);
}

/*
 * An expression has no effect, and an offer to saga.take() is a row of the
 * same turn: neither needs what decided it to be written.  A local action may
 * overtake what a replay decides again in the same way.  The end must not
 * overtake the record of the last step.
 */
bool
saga_starts_at_once(const SagaRun *run, const SagaCommand *c)
{
	if (c->op == SAGA_OP_EVAL || is_offer(run, c))
		return true;
	return saga_command_is_local(run, c) && !run->ordered && c->node != SAGA_NODE_END;
}

/* ----------------------------------------------------------- the calls */

void
saga_run_values(SagaRun *run, int step, SagaOp op, int attempt, SagaValues *v)
{
	memset(v, 0, sizeof(*v));
	v->saga_id = run->row.id;
	v->saga_name = run->def->name;
	v->saga_key = run->row.key;
	v->step_name = saga_step_name(run, step);
	v->attempt = attempt;
	v->op = op;
	v->correlation = run->row.correlation;
	v->started_by = run->started_by;
	v->started_at = run->row.started_at;
	v->deadline = run->row.deadline;
	v->cause = run->state->cause == SAGA_CAUSE_NONE ? NULL :
		saga_cause_name(run->state->cause);
	v->input = run->row.input;
	v->node = step;
	v->results = run->results;
	v->items = run->items;
	v->state = run->state;
}

static SagaServer *
server_for(SagaRun *run, const char *name, char **problem, int *sqlstate)
{
	ServerKey	key;
	ServerEntry *entry;
	bool		found;
	MemoryContext old;

	memset(&key, 0, sizeof(key));
	key.owner = run->def->owner;
	strlcpy(key.name, name, sizeof(key.name));
	entry = hash_search(servers, &key, HASH_ENTER, &found);
	if (found && entry->server && entry->generation == saga_server_generation())
		return entry->server;
	if (found && entry->context)
		MemoryContextDelete(entry->context);
	entry->server = NULL;
	entry->context = AllocSetContextCreate(TopMemoryContext, "saga server",
										   ALLOCSET_SMALL_SIZES);
	entry->generation = saga_server_generation();
	old = MemoryContextSwitchTo(entry->context);
	entry->server = saga_server_lookup(name, run->def->owner, problem, sqlstate);
	MemoryContextSwitchTo(old);
	return entry->server;
}

static SagaHook
hook_of(const SagaRun *run, int node)
{
	if (node == SAGA_NODE_ON_STUCK)
		return SAGA_HOOK_STUCK;
	if (node == SAGA_NODE_END)
		return run->state->direction == SAGA_FORWARD ? SAGA_HOOK_COMPLETED :
			SAGA_HOOK_COMPENSATED;
	return SAGA_HOOK_NONE;
}


static void
start_remote(SagaRun *run, SagaCallOut *out, const SagaCommand *c, char **values)
{
	SagaRequest request;
	SagaCall   *call = out->call;
	char	   *problem = NULL;
	int			sqlstate = 0;
	SagaServer *server = server_for(run, call->server, &problem, &sqlstate);

	if (server == NULL)
	{
		SagaPayload *payload = MemoryContextAllocZero(saga_turn_context, sizeof(SagaPayload));

		strlcpy(payload->sqlstate, unpack_sql_state(sqlstate), sizeof(payload->sqlstate));
		payload->message = problem ? MemoryContextStrdup(saga_turn_context, problem) : NULL;
		saga_run_answer(out, SAGA_ANSWER_BROKEN, false, payload);
		return;
	}
	if ((server->kind == SAGA_SERVER_HTTP) != (call->tmpl->kind == SAGA_TEMPLATE_HTTP))
	{
		SagaPayload *payload = MemoryContextAllocZero(saga_turn_context, sizeof(SagaPayload));

		strlcpy(payload->sqlstate, "42809", sizeof(payload->sqlstate));
		payload->message = MemoryContextStrdup(saga_turn_context,
											   "the server is of another kind than when the saga was defined");
		saga_run_answer(out, SAGA_ANSWER_BROKEN, false, payload);
		return;
	}
	memset(&request, 0, sizeof(request));
	request.tag = out->tag;
	request.mode = c->op == SAGA_OP_CLAIM ? SAGA_REQUEST_CLAIM :
		c->op == SAGA_OP_UNDO && out->conditional ? SAGA_REQUEST_UNDO : SAGA_REQUEST_RUN;
	if (call->role != SAGA_BRANCH_NONE)
		saga_branch_request(&run->row.id, call, c->op, &request);
	request.server = server;
	request.saga_id = run->row.id;
	request.saga_name = run->def->name;
	if (request.step == NULL)
		request.step = saga_step_name(run, c->node);
	request.op = c->op == SAGA_OP_CLAIM ? c->target : c->op;
	request.tmpl = call->tmpl;
	request.values = values;
	request.shape = call->shape;
	request.expect_rows = call->expect_rows;
	request.timeout_ms = saga_amend_timeout(run, c->node, request.op == SAGA_OP_UNDO,
											call->timeout_ms);
	request.attempt = c->attempt;
	request.callback = call->callback;
	if (call->callback)
		request.callback_token = saga_callback_token(&run->row.id, request.step, request.op);
	request.at_most_once = run->def->graph->nodes[saga_node_of(run, c->node)].at_most_once;
	request.correlation = run->row.correlation;
	request.idempotency_key = saga_idempotency_key(&request.saga_id, request.step,
												   request.op);
	request.not_after = saga_now() + (int64) saga_barrier_retention * USECS_PER_SEC;
	saga_connector_submit(&request);
}

/*
 * Barrier rows are of use until no call with their key can be accepted any
 * more: every call says until when it may be (not_after), which is at most
 * saga.barrier_retention after its saga's end.
 */
void
saga_purge_barriers(void)
{
	HASH_SEQ_STATUS status;
	ServerEntry *entry;
	TimestampTz before = saga_now() - (int64) saga_barrier_retention * USECS_PER_SEC;
	char	   *spared = saga_log_read_spared(before);

	hash_seq_init(&status, servers);
	while ((entry = hash_seq_search(&status)) != NULL)
	{
		SagaRequest request;

		if (entry->server == NULL || entry->generation != saga_server_generation() ||
			entry->server->kind != SAGA_SERVER_POSTGRES)
			continue;
		memset(&request, 0, sizeof(request));
		request.mode = SAGA_REQUEST_PURGE;	/* tag 0: nobody waits for it */
		request.server = entry->server;
		request.saga_name = "upkeep";
		request.timeout_ms = 60000;
		request.purge_before = before;
		request.purge_live = spared;
		saga_connector_submit(&request);
	}
}

/*
 * Does the compensation run where it cannot see the action's barrier?  (Where
 * there is none, an action that may have happened is undone as if it had.)
 */
static bool
undone_elsewhere(const SagaRun *run, int step)
{
	const SagaCall *action = run->def->action[saga_node_of(run, step)];
	const SagaCall *compensation = run->def->compensation[saga_node_of(run, step)];

	return action && action->server && compensation &&
		action->kind != SAGA_CALL_ASKED && action->tmpl->kind == SAGA_TEMPLATE_SQL &&
		(compensation->server == NULL ||
		 strcmp(action->server, compensation->server) != 0);
}

/*
 * An action that may have happened, and a compensation at another place: the
 * action's participant is asked, and told to refuse it, before anything is
 * undone (saga_asked_first() has the answer).
 */
static void
ask_first(SagaRun *run, const SagaCommand *c)
{
	SagaCommand claim = *c;
	SagaCall   *action = run->def->action[saga_node_of(run, c->node)];
	SagaCallOut *out;
	char	  **none = palloc0(sizeof(char *) * Max(action->tmpl->nparams, 1));

	claim.op = SAGA_OP_CLAIM;
	claim.target = SAGA_OP_ACTION;
	out = saga_call_out(run, action, c->node, c->op, SAGA_HOOK_NONE, c->attempt);
	out->asks_first = true;
	start_remote(run, out, &claim, none);
}

void
saga_asked_first(SagaCallOut *call, SagaAnswerKind answer, bool free,
				 SagaPayload *payload)
{
	SagaRun    *run = call->run;
	SagaCommand command;

	if (answer == SAGA_ANSWER_REFUSED)
	{
		/* it never happened and never will: nothing to undo */
		payload->result = NULL;
		saga_run_answer(call, SAGA_ANSWER_DONE, false, payload);
		return;
	}
	if (answer != SAGA_ANSWER_DONE || run == NULL)
	{
		saga_run_answer(call, answer, free, payload);
		return;
	}
	if (run->results[call->node] == NULL)
		run->results[call->node] = saga_keep_result(run, payload->result);
	memset(&command, 0, sizeof(command));
	command.kind = SAGA_CMD_CALL;
	command.op = SAGA_OP_UNDO;
	command.node = call->node;
	command.attempt = call->attempt;
	saga_call_done(call);
	saga_start_call(run, &command);
}

/* An offer to saga.take() ends. */
static void
withdraw(SagaRun *run, int step, SagaOp op)
{
	SagaQueued *q = SAGA_APPEND(saga_turn.queued, saga_turn.nqueued, saga_turn.maxqueued);

	memset(q, 0, sizeof(*q));
	q->saga_id = run->row.id;
	q->step = saga_step_name(run, step);
	q->op = op;
	q->removed = true;
}

/*
 * What has become of a call that an executor ran, or not: its outcome stands
 * in our own table, and nobody else runs it.
 */
static SagaAnswerKind
local_fate(SagaRun *run, int step, SagaOp op, Jsonb **result)
{
	*result = NULL;
	if (saga_call_is_out(run, step, op))
		return SAGA_ANSWER_TRANSIENT;
	saga_worker_look_again();
	return saga_log_read_outcome(&run->row.id, step, saga_outcome_op(op), result) ?
		SAGA_ANSWER_DONE : SAGA_ANSWER_REFUSED;
}

/*
 * A claim of such a call, or the undo of one that may not have happened, is
 * answered here; false: it has happened, and is to be undone.
 */
static bool
answer_from_fate(SagaRun *run, SagaCallOut *out, const SagaCommand *c)
{
	SagaPayload *payload = MemoryContextAllocZero(saga_turn_context, sizeof(SagaPayload));
	SagaOp		op = c->op == SAGA_OP_CLAIM ? c->target : SAGA_OP_ACTION;
	SagaAnswerKind fate = local_fate(run, c->node, op, &payload->result);

	if (c->op == SAGA_OP_UNDO && fate == SAGA_ANSWER_DONE)
		return false;
	if (c->op == SAGA_OP_UNDO && fate == SAGA_ANSWER_REFUSED)
		fate = SAGA_ANSWER_DONE;	/* nothing to undo */
	if (fate == SAGA_ANSWER_TRANSIENT)
		payload->message = "the action is still running";
	saga_run_answer(out, fate, fate == SAGA_ANSWER_TRANSIENT, payload);
	return true;
}

/* Was the action of this step, if any, run by an executor? */
static bool
action_was_local(const SagaRun *run, const SagaCommand *c)
{
	SagaCommand action = *c;

	action.op = SAGA_OP_ACTION;
	return saga_command_is_local(run, &action);
}

/* Could the participant of this undo know whether the action happened? */
static bool
may_be_conditional(const SagaRun *run, const SagaCommand *c)
{
	const SagaCall *action = run->def->action[saga_node_of(run, c->node)];

	return action && action->server != NULL;
}

/*
 * The call's values, those of what is evaluated after it, and what else an
 * executor is told.  Returns how many.
 */
static int
bind_values(SagaCallOut *out, char ***bound)
{
	SagaRun    *run = out->run;
	SagaCall   *after = saga_exec_after(run->def, out->call, out->op, out->hook, out->eval);
	int			n = out->call && out->call->tmpl ? out->call->tmpl->nparams : 0;
	int			more = after ? after->tmpl->nparams : 0;
	SagaValues	values;

	saga_run_values(run, out->node, out->op, out->attempt, &values);
	values.result = out->held;
	if (out->call && out->call->args)
		values.input = out->call->args;
	if (out->call && out->call->callback)
		values.callback_token = saga_callback_token(&run->row.id, values.step_name, out->op);
	*bound = palloc0(sizeof(char *) * (n + more + 1));
	if (out->call)
		saga_call_bind(out->call, &values, *bound);
	if (after)
		saga_template_bind(after->tmpl, &values, *bound + n);
	(*bound)[n + more] = unconstify(char *, values.step_name);
	return n + more + saga_exec_extra(out->call, out->op, out->eval);
}

static void
start_local(SagaCallOut *out)
{
	char	  **bound;
	int			n = bind_values(out, &bound);

	out->local = true;
	saga_dispatch_local(out, bound, n);
}

void
saga_call_again(SagaCallOut *call, bool solo)
{
	SagaRun    *run = call->run;
	SagaCallOut old = *call;
	SagaCallOut *again;

	saga_call_done(call);
	if (run == NULL)
		return;
	again = saga_call_out(run, old.call, old.node, old.op, old.hook, old.attempt);
	again->eval = old.eval;
	again->held = old.held;
	again->solo = solo;
	start_local(again);
}

/* What a durable procedure asked for, as a call; answers and is NULL if it cannot be. */
static SagaCall *
asked_call(SagaRun *run, const SagaCommand *c, SagaCall *call)
{
	int32		by = saga_definition_node(run->def, call->by);
	int32		step = by < 0 ? SAGA_NO_NODE :
		saga_machine_seen_from(run->state, c->node, by);
	char	   *problem = NULL;
	int			sqlstate = ERRCODE_DATA_CORRUPTED;
	SagaServer *server = NULL;
	Jsonb	   *asked = step < 0 ? NULL : run->results[step];
	SagaCall   *made = NULL;
	char	   *name = asked ? saga_asked_server(asked) : NULL;

	if (name == NULL)
		problem = "nothing is asked for";
	else if ((server = server_for(run, name, &problem, &sqlstate)) != NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(run->context);

		sqlstate = ERRCODE_SYNTAX_ERROR;
		made = saga_asked_call(asked, c->op == SAGA_OP_UNDO ||
							   (c->op == SAGA_OP_CLAIM && c->target == SAGA_OP_UNDO),
							   server->kind == SAGA_SERVER_HTTP, &problem);
		MemoryContextSwitchTo(old);
	}
	if (made == NULL && server && problem == NULL)
		saga_run_answer(saga_call_out(run, call, c->node, c->op, SAGA_HOOK_NONE, c->attempt),
						SAGA_ANSWER_DONE, false, NULL);
	else if (made == NULL)
	{
		SagaPayload *payload = MemoryContextAllocZero(saga_turn_context, sizeof(SagaPayload));

		strlcpy(payload->sqlstate, unpack_sql_state(sqlstate), sizeof(payload->sqlstate));
		payload->message = problem ? MemoryContextStrdup(saga_turn_context, problem) : NULL;
		saga_run_answer(saga_call_out(run, call, c->node, c->op, SAGA_HOOK_NONE, c->attempt),
						SAGA_ANSWER_BROKEN, false, payload);
	}
	return made;
}

/* In a transaction: names are resolved, servers looked up. */
void
saga_start_call(SagaRun *run, const SagaCommand *c)
{
	SagaHook	hook = hook_of(run, c->node);
	SagaCall   *call = call_of(run, c, hook);
	SagaCallOut *out;
	char	  **bound;

	if (call == NULL && !(hook == SAGA_HOOK_COMPLETED && run->def->output))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("step \"%s\" of saga \"%s\" has nothing to call",
						saga_step_name(run, c->node), run->def->name)));
	if (call && call->kind == SAGA_CALL_CHILD)
		run->holds = true;		/* it leaves what it has reserved to us */
	if (call && call->kind == SAGA_CALL_ASKED && (call = asked_call(run, c, call)) == NULL)
		return;
	if (c->op == SAGA_OP_UNDO && c->conditional && undone_elsewhere(run, c->node))
	{
		ask_first(run, c);
		return;
	}
	out = saga_call_out(run, call, c->node, c->op, hook, c->attempt);
	out->conditional = c->conditional && may_be_conditional(run, c);
	if (c->op == SAGA_OP_EVAL)
		out->eval = c->eval;
	else if (call && call->kind == SAGA_CALL_QUEUE)
	{
		if (c->op == SAGA_OP_CLAIM)
		{
			withdraw(run, c->node, c->target);
			saga_run_answer(out, SAGA_ANSWER_REFUSED, false, NULL);
			return;
		}
		out->eval = SAGA_EVAL_INPUT;
	}
	else if (call && call->kind == SAGA_CALL_CHILD)
	{
		if (c->op == SAGA_OP_CLAIM)
			saga_child_claim(run, out, c->target);
		else if (c->op == SAGA_OP_UNDO)
			saga_child_undo(run, out);
		else
			start_local(out);	/* by an executor, for what that may run */
		return;
	}
	else if (c->op == SAGA_OP_CLAIM ? saga_command_is_local(run, c) :
			 c->op == SAGA_OP_UNDO && c->conditional && action_was_local(run, c))
	{
		if (answer_from_fate(run, out, c))
			return;
	}
	if (out->eval != SAGA_EVAL_NONE || saga_command_is_local(run, c))
	{
		start_local(out);
		return;
	}
	if (c->op == SAGA_OP_CLAIM)
		bound = palloc0(sizeof(char *) * Max(call->tmpl->nparams, 1));
	else
		(void) bind_values(out, &bound);
	start_remote(run, out, c, bound);
}

/* ---------------------------------------------------------- expressions */

static bool
number_of(const Jsonb *value, double *number)
{
	JsonbValue	v;

	if (value == NULL || !JB_ROOT_IS_SCALAR(value) ||
		!JsonbExtractScalar((JsonbContainer *) &value->root, &v) || v.type != jbvNumeric)
		return false;
	*number = DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow,
												 NumericGetDatum(v.val.numeric)));
	return true;
}

static bool
is_true(const Jsonb *value)
{
	JsonbValue	v;

	return value && JB_ROOT_IS_SCALAR(value) &&
		JsonbExtractScalar((JsonbContainer *) &value->root, &v) &&
		v.type == jbvBool && v.val.boolean;
}

static Jsonb *
empty_array(void)
{
	JsonbParseState *state = NULL;
	MemoryContext old = MemoryContextSwitchTo(saga_turn_context);
	Jsonb	   *array;

	pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	array = JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_ARRAY, NULL));
	MemoryContextSwitchTo(old);
	return array;
}

/* The answer is no value of the kind that is needed. */
static void
refuse_value(SagaCallOut *call, SagaPayload *payload, int sqlstate, const char *why)
{
	strlcpy(payload->sqlstate, unpack_sql_state(sqlstate), sizeof(payload->sqlstate));
	payload->message = why;
	payload->result = NULL;
	saga_run_answer(call, SAGA_ANSWER_BROKEN, false, payload);
}

/* Seconds since 1970, and what is later than all times, as a SagaTime. */
static SagaTime
time_of_seconds(double seconds)
{
	seconds -= (double) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY;
	return seconds > 8e12 ? SAGA_NEVER : seconds < -2e11 ? 0 : (SagaTime) rint(seconds * SAGA_SECOND);
}

static void
evaluated_for_machine(SagaCallOut *call, SagaPayload *payload)
{
	Jsonb	   *value = payload->result;
	double		number;

	payload->result = NULL;
	switch ((SagaEval) call->eval)
	{
		case SAGA_EVAL_CONDITION:
		case SAGA_EVAL_WHILE:
			call->value = is_true(value);
			break;
		case SAGA_EVAL_CASES:
			call->value = number_of(value, &number) ? (int64) number : -1;
			break;
		case SAGA_EVAL_ITEMS:
			if (value && !(JB_ROOT_IS_ARRAY(value) && !JB_ROOT_IS_SCALAR(value)))
			{
				refuse_value(call, payload, ERRCODE_INVALID_PARAMETER_VALUE,
							 "for_each did not give a JSON array");
				return;
			}
			payload->result = value ? value : empty_array();
			call->value = JB_ROOT_COUNT(payload->result);
			break;
		case SAGA_EVAL_TIME:
			if (!number_of(value, &number))
			{
				refuse_value(call, payload, ERRCODE_NULL_VALUE_NOT_ALLOWED,
							 "the time to sleep, or to sleep until, is null");
				return;
			}
			call->value = time_of_seconds(number);
			break;
	}
	saga_run_answer(call, SAGA_ANSWER_DONE, false, payload);
}

static void
offer(SagaRun *run, const SagaCallOut *call, Jsonb *input)
{
	SagaQueued *q = SAGA_APPEND(saga_turn.queued, saga_turn.nqueued, saga_turn.maxqueued);

	memset(q, 0, sizeof(*q));
	q->saga_id = run->row.id;
	q->step = saga_step_name(run, call->node);
	q->op = call->op;
	q->queue = call->call->queue;
	q->definition = run->def->name;
	q->priority = run->known->priority;
	q->input = input;
}

void
saga_evaluated(SagaCallOut *call, SagaAnswerKind answer, SagaPayload *payload)
{
	if (call->run == NULL)
		saga_call_done(call);
	else if (call->eval == SAGA_EVAL_DECLINE_IF)
	{
		if (answer != SAGA_ANSWER_DONE)
			answer = SAGA_ANSWER_UNKNOWN;	/* the call itself was done */
		else if (is_true(payload->result))
		{
			answer = SAGA_ANSWER_DECLINED;
			strlcpy(payload->sqlstate, unpack_sql_state(ERRCODE_SAGA_DECLINED),
					sizeof(payload->sqlstate));
			payload->message = "decline_if is true";
		}
		payload->result = answer == SAGA_ANSWER_UNKNOWN ? NULL : call->held;
		saga_run_answer(call, answer, false, payload);
	}
	else if (answer != SAGA_ANSWER_DONE)
		saga_run_answer(call, answer, false, payload);
	else if (call->eval == SAGA_EVAL_INPUT)
	{
		offer(call->run, call, payload->result);
		saga_run_answer(call, SAGA_ANSWER_ACCEPTED, false, NULL);
	}
	else
		evaluated_for_machine(call, payload);
}

void
saga_ask_decline_if(SagaCallOut *call, SagaPayload *payload)
{
	SagaRun    *run = call->run;
	SagaCallOut *out;
	SagaCallOut old = *call;

	saga_call_done(call);
	if (run == NULL)
		return;
	out = saga_call_out(run, old.call->decline_if, old.node, old.op, old.hook, old.attempt);
	out->eval = SAGA_EVAL_DECLINE_IF;
	out->held = saga_keep_result(run, payload->result);
	start_local(out);
}

/* ------------------------------------------------- calls that must wait */

void
saga_send_later(SagaRun *run, const SagaCommand *command)
{
	Send	   *send;

	if (nsends == maxsends)
	{
		maxsends = Max(64, maxsends * 2);
		sends = sends ? repalloc_huge(sends, sizeof(Send) * maxsends) :
			MemoryContextAllocHuge(calls_context, sizeof(Send) * maxsends);
	}
	send = &sends[nsends++];
	send->saga_id = run->row.id;
	send->command = *command;
	send->local = saga_command_is_local(run, command);
	if (send->local)
		saga_turn_commit = true;	/* what comes later in the WAL waits for it */
	else
		saga_turn_flush = true;
}

void
saga_sends_drop(const pg_uuid_t *id)
{
	int			kept = 0;

	for (int i = 0; i < nsends; i++)
		if (memcmp(&sends[i].saga_id, id, UUID_LEN) != 0)
			sends[kept++] = sends[i];
	nsends = kept;
}

static void
hold_some(SendQueue *queue, XLogRecPtr lsn, bool local)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "saga sends",
												  ALLOCSET_SMALL_SIZES);
	SendBatch  *batch = MemoryContextAllocZero(context, sizeof(SendBatch));

	batch->lsn = lsn;
	batch->context = context;
	batch->sends = MemoryContextAllocHuge(context, sizeof(Send) * nsends);
	for (int i = 0; i < nsends; i++)
		if (sends[i].local == local)
			batch->sends[batch->n++] = sends[i];
	if (batch->n == 0)
	{
		MemoryContextDelete(context);
		return;
	}
	if (queue->last)
		queue->last->next = batch;
	else
		queue->first = batch;
	queue->last = batch;
}

/* The turn is committed at lsn. */
void
saga_sends_hold(XLogRecPtr lsn)
{
	if (nsends == 0)
		return;
	hold_some(&held_local, 0, true);
	hold_some(&held_remote, lsn, false);
	nsends = 0;
}

/* Is this call still wanted?  Things may have moved since it was decided. */
static bool
still_wanted(SagaRun *run, const SagaCommand *c)
{
	const SagaStep *step;

	if (SAGA_STATE_ENDED(run->state->state))
		return false;
	if (c->node == SAGA_NODE_ON_STUCK)
		return run->state->stuck_hook_due;
	step = c->node == SAGA_NODE_END ? &run->state->hook : &run->state->steps[c->node];
	return c->op == SAGA_OP_CLAIM ? step->claim_out : step->in_flight;
}

/* Does anything wait, or only for standbys? */
bool
saga_sends_held(XLogRecPtr durable)
{
	return held_local.first != NULL ||
		(held_remote.first != NULL && held_remote.first->lsn <= durable);
}

bool
saga_sends_wait_for_standby(XLogRecPtr durable)
{
	return held_remote.first != NULL && held_remote.first->lsn > durable;
}

static void
release(SendQueue *queue, XLogRecPtr durable)
{
	while (queue->first && queue->first->lsn <= durable)
	{
		SendBatch  *batch = queue->first;

		while (batch->at < batch->n)
		{
			Send	   *send = &batch->sends[batch->at++];
			Known	   *known = saga_known(&send->saga_id, false);

			if (known == NULL || known->run == NULL ||
				!still_wanted(known->run, &send->command))
				continue;
			saga_current = known->id;
			saga_current_set = true;
			saga_start_call(known->run, &send->command);
			saga_current_set = false;
		}
		queue->first = batch->next;
		if (queue->first == NULL)
			queue->last = NULL;
		MemoryContextDelete(batch->context);
	}
}

void
saga_sends_release(XLogRecPtr durable)
{
	release(&held_local, durable);
	release(&held_remote, durable);
}
