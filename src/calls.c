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

#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "compat.h"
#include "coordinator.h"
#include "guc.h"
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

bool
saga_command_is_local(const SagaRun *run, const SagaCommand *c)
{
	const SagaNode *node;

	if (c->node < 0)
		return true;
	node = &run->def->graph->nodes[c->node];
	if (c->op == SAGA_OP_UNDO)
		return node->compensation_local;
	if (c->op == SAGA_OP_CLAIM)
		return c->target == SAGA_OP_UNDO ? node->compensation_local : node->action_local;
	return node->action_local;
}

/* ----------------------------------------------------------- the calls */

void
saga_run_values(SagaRun *run, int node, SagaOp op, int attempt, SagaValues *v)
{
	memset(v, 0, sizeof(*v));
	v->saga_id = run->row.id;
	v->saga_name = run->def->name;
	v->saga_key = run->row.key;
	v->step_name = saga_step_name(run, node);
	v->attempt = attempt;
	v->op = op;
	v->correlation = run->row.correlation;
	v->started_by = run->started_by;
	v->started_at = run->row.started_at;
	v->deadline = run->row.deadline;
	v->cause = run->state->cause == SAGA_CAUSE_NONE ? NULL :
		saga_cause_name(run->state->cause);
	v->input = run->row.input;
	v->node = node;
	v->results = run->results;
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

/* The action whose key a claim is about, or the call itself. */
static SagaCall *
call_of(SagaRun *run, const SagaCommand *c, SagaHook hook)
{
	return saga_exec_call(run->def, c->node,
						  c->op == SAGA_OP_CLAIM ? c->target : c->op, hook);
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
		c->op == SAGA_OP_UNDO && c->conditional ? SAGA_REQUEST_UNDO : SAGA_REQUEST_RUN;
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
	request.timeout_ms = call->timeout_ms;
	request.attempt = c->attempt;
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
undone_elsewhere(const SagaRun *run, int node)
{
	const SagaCall *action = run->def->action[node];
	const SagaCall *compensation = run->def->compensation[node];

	return action && action->server && compensation &&
		action->tmpl->kind == SAGA_TEMPLATE_SQL &&
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
	SagaCall   *action = run->def->action[c->node];
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

/* In a transaction: names are resolved, servers looked up. */
void
saga_start_call(SagaRun *run, const SagaCommand *c)
{
	SagaHook	hook = hook_of(run, c->node);
	SagaCall   *call = call_of(run, c, hook);
	SagaCallOut *out;
	SagaValues	values;
	char	  **bound;

	if (call == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("step \"%s\" of saga \"%s\" has nothing to call",
						saga_step_name(run, c->node), run->def->name)));
	if (c->op == SAGA_OP_UNDO && c->conditional && undone_elsewhere(run, c->node))
	{
		ask_first(run, c);
		return;
	}
	out = saga_call_out(run, call, c->node, c->op, hook, c->attempt);
	out->conditional = c->conditional;
	out->local = saga_command_is_local(run, c);
	saga_run_values(run, c->node, c->op, c->attempt, &values);
	bound = palloc0(sizeof(char *) * Max(call->tmpl->nparams, 1));
	if (c->op != SAGA_OP_CLAIM)
		saga_call_bind(call, &values, bound);
	if (out->local)
		saga_dispatch_local(out, bound);
	else
		start_remote(run, out, c, bound);
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
