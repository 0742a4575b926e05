/*
 * runs.c
 *		A coordinator's sagas in memory: taking them in, feeding events to the
 *		machine, turning its decisions into the rows of a turn and into calls.
 *
 * Called by coordinator.c and dispatch.c.  Owns the table of known sagas, the
 * turn being gathered, and the calls that wait for it to be durable.
 *
 * Order is all here.  A remote call goes out when the turn that holds its
 * intent is flushed.  A local call goes out at once, unless its saga has
 * unwritten records that a replay would not decide again in the same way (a
 * failure, a verb, the turn to undo): then it waits for the commit, and since
 * the executor's commit comes later in the WAL, no crash can keep the effect
 * and lose the decision.
 */
#include "postgres.h"

#include "access/xact.h"
#include "common/pg_prng.h"
#include "lib/pairingheap.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "compat.h"
#include "coordinator.h"
#include "guc.h"

/* A saga with nothing to do for this long leaves memory. */
#define EVICT_AFTER		(60 * SAGA_SECOND)
#define SET_ASIDE_FOR	(10 * SAGA_SECOND)

/* Ids in a ring that grows. */
typedef struct Queue
{
	SagaRingEntry *entries;
	int64		head;
	int64		tail;
	int64		size;
} Queue;

/* A call that waits until its turn is durable. */
typedef struct Send
{
	pg_uuid_t	saga_id;
	SagaCommand command;
} Send;

typedef struct SendBatch
{
	XLogRecPtr	lsn;
	int			n;
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

SagaTurn	saga_turn;
MemoryContext saga_turn_context;
bool		saga_turn_flush = false;
TimestampTz saga_turn_since = 0;
pg_uuid_t	saga_current;
bool		saga_current_set = false;

static MemoryContext runs_context;
static HTAB *known_sagas;
static HTAB *servers;
static pairingheap *timers;
static int	loaded = 0;

static Queue arrivals;			/* sagas to be taken in, when there is room */
static Queue commands;			/* of the inbox; they need no room */

static Send *sends;				/* of the turn being gathered */
static int	nsends = 0,
			maxsends = 0;
static SendBatch *held_first = NULL,
		   *held_last = NULL;
static SagaRun **touched;
static int	ntouched = 0,
			maxtouched = 0;
static pg_uuid_t *ended;
static int	nended = 0,
			maxended = 0;
static List *recovered = NIL;	/* SagaOutcome, until their saga is taken in */

static SagaDecision decision;
static SagaArena decision_arena;

static void start_call(SagaRun *run, const SagaCommand *command);

/* ------------------------------------------------------------- helpers */

static void *
arena_alloc(SagaArena *arena, size_t size)
{
	return MemoryContextAllocZero(arena->context, size);
}

static int
compare_due(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	const Known *ka = pairingheap_const_container(Known, node, a);
	const Known *kb = pairingheap_const_container(Known, node, b);

	return ka->due < kb->due ? 1 : ka->due > kb->due ? -1 : 0;
}

void
saga_runs_init(void)
{
	HASHCTL		ctl;

	runs_context = AllocSetContextCreate(TopMemoryContext, "saga runs",
										 ALLOCSET_DEFAULT_SIZES);
	saga_turn_context = AllocSetContextCreate(TopMemoryContext, "saga turn",
											  ALLOCSET_DEFAULT_SIZES);
	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = UUID_LEN;
	ctl.entrysize = sizeof(Known);
	ctl.hcxt = runs_context;
	known_sagas = hash_create("known sagas", 1024, &ctl,
							  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(ServerKey);
	ctl.entrysize = sizeof(ServerEntry);
	servers = hash_create("saga servers", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	MemoryContextSwitchTo(runs_context);
	timers = pairingheap_allocate(compare_due, NULL);
	decision_arena.alloc = arena_alloc;
	decision_arena.context = runs_context;
	decision.arena = &decision_arena;
	decision.maxrecords = decision.maxcommands = 0;
}

/* Grow one of the turn's arrays; they live in the turn's context. */
#define APPEND(array, n, max) \
	((n) < (max) ? &(array)[(n)++] : \
	 ((max) = Max(64, (max) * 2), \
	  (array) = (array) ? repalloc_huge((array), sizeof(*(array)) * (max)) : \
	  MemoryContextAllocHuge(saga_turn_context, sizeof(*(array)) * (max)), \
	  &(array)[(n)++]))

Known *
saga_known(const pg_uuid_t *id, bool create)
{
	bool		found;
	Known	   *known = hash_search(known_sagas, id, create ? HASH_ENTER : HASH_FIND,
									&found);

	if (known && !found)
	{
		memset((char *) known + UUID_LEN, 0, sizeof(Known) - UUID_LEN);
		known->due = SAGA_NEVER;
	}
	return known;
}

static void
set_due(Known *known, SagaTime due)
{
	if (known->due == due && known->in_heap == (due != SAGA_NEVER))
		return;
	if (known->in_heap)
		pairingheap_remove(timers, &known->node);
	known->due = due;
	known->in_heap = due != SAGA_NEVER;
	if (known->in_heap)
		pairingheap_add(timers, &known->node);
}

static void
forget_known(Known *known)
{
	set_due(known, SAGA_NEVER);
	hash_search(known_sagas, &known->id, HASH_REMOVE, NULL);
}

static void
enqueue(Queue *queue, const pg_uuid_t *id, int64 inbox_id)
{
	SagaRingEntry *entry;

	if (queue->tail - queue->head == queue->size)
	{
		int64		size = Max(1024, queue->size * 2);
		SagaRingEntry *bigger = MemoryContextAllocHuge(runs_context,
													   sizeof(SagaRingEntry) * size);

		for (int64 i = queue->head; i < queue->tail; i++)
			bigger[i % size] = queue->entries[i % queue->size];
		if (queue->entries)
			pfree(queue->entries);
		queue->entries = bigger;
		queue->size = size;
	}
	entry = &queue->entries[queue->tail++ % queue->size];
	entry->saga_id = *id;
	entry->inbox_id = inbox_id;
}

void
saga_arrive(const pg_uuid_t *id, int64 inbox_id)
{
	Known	   *known;

	if (inbox_id != 0)
	{
		enqueue(&commands, id, inbox_id);
		return;
	}
	known = saga_known(id, true);
	if (known->run == NULL && !known->queued)
	{
		known->queued = true;
		enqueue(&arrivals, id, 0);
	}
}

/* Not in memory: look at it when 'due' comes. */
void
saga_sleeps(const pg_uuid_t *id, TimestampTz due)
{
	Known	   *known = saga_known(id, true);

	if (known->run || known->queued)
		return;
	known->has_wakeup = true;
	set_due(known, due == DT_NOEND ? SAGA_NEVER : due);
}

bool
saga_arrivals_pending(void)
{
	return commands.head < commands.tail ||
		(arrivals.head < arrivals.tail && loaded < saga_max_running);
}

int
saga_runs_loaded(void)
{
	return loaded;
}

static void
touch(SagaRun *run)
{
	if (run->touched)
		return;
	run->touched = true;
	*APPEND(touched, ntouched, maxtouched) = run;
}

static void
free_run(SagaRun *run, bool forget)
{
	Known	   *known = run->known;

	saga_calls_forget_run(run);
	loaded--;
	known->run = NULL;
	MemoryContextDelete(run->context);
	if (forget)
		forget_known(known);
}

/* ------------------------------------------------------------ decisions */

static const char *
step_name(const SagaRun *run, int node)
{
	if (node == SAGA_NODE_END)
		return "$end";
	if (node == SAGA_NODE_ON_STUCK)
		return "$on_stuck";
	if (node >= 0 && node < run->def->graph->nnodes)
		return run->def->graph->nodes[node].name;
	return NULL;
}

static int
node_of_step(void *arg, const char *step)
{
	SagaDefinition *def = arg;

	if (strcmp(step, "$end") == 0)
		return SAGA_NODE_END;
	if (strcmp(step, "$on_stuck") == 0)
		return SAGA_NODE_ON_STUCK;
	return saga_definition_node(def, step);
}

static Jsonb *
keep_result(SagaRun *run, Jsonb *result)
{
	Jsonb	   *copy;

	if (result == NULL)
		return NULL;
	copy = MemoryContextAlloc(run->context, VARSIZE(result));
	memcpy(copy, result, VARSIZE(result));
	return copy;
}

static char *
keep_text(SagaRun *run, const char *s)
{
	return s ? MemoryContextStrdup(run->context, s) : NULL;
}

/* What a record means beyond the machine's state; also during replay. */
static void
remember_record(SagaRun *run, const SagaRecord *r, const SagaPayload *p)
{
	switch (r->kind)
	{
		case SAGA_RECORD_DONE:
		case SAGA_RECORD_SKIPPED:
			if (r->node >= 0 && r->op != SAGA_OP_UNDO)
				run->results[r->node] = keep_result(run, p->result);
			break;
		case SAGA_RECORD_FAILED:
		case SAGA_RECORD_HOOK:
			strlcpy(run->sqlstate, p->sqlstate, sizeof(run->sqlstate));
			run->error = keep_text(run, p->message);
			break;
		case SAGA_RECORD_UNDO:
			run->failed_step = keep_text(run, step_name(run, r->node));
			if (r->cause == SAGA_CAUSE_CANCELLED)
			{
				run->sqlstate[0] = '\0';
				run->error = keep_text(run, p->note);
			}
			break;
		default:
			break;
	}
}

static void
note_stuck(SagaRun *run, const SagaRecord *r, TimestampTz now)
{
	SagaStuckChange *s = APPEND(saga_turn.stuck, saga_turn.nstuck, saga_turn.maxstuck);

	memset(s, 0, sizeof(*s));
	s->saga_id = run->row.id;
	s->stuck = true;
	s->step = step_name(run, r->node);
	s->operation = s->step ? saga_op_name(r->op) : NULL;
	s->reason = saga_stuck_reason_name(r->reason);
	s->sqlstate = MemoryContextStrdup(saga_turn_context, run->sqlstate);
	s->message = run->error;
	s->since = now;
	run->stuck_written = true;
}

static void
note_change(SagaRun *run, TimestampTz now)
{
	SagaState  *state = run->state;
	SagaInstanceChange *c;

	if (run->stuck_written && state->state != SAGA_STUCK)
	{
		SagaStuckChange *s = APPEND(saga_turn.stuck, saga_turn.nstuck, saga_turn.maxstuck);

		memset(s, 0, sizeof(*s));
		s->saga_id = run->row.id;
		run->stuck_written = false;
	}
	if (run->change < 0)
	{
		if (run->written_state == state->state &&
			run->written_direction == state->direction &&
			run->written_cause == state->cause)
			return;
		run->change = saga_turn.nchanges;
		c = APPEND(saga_turn.changes, saga_turn.nchanges, saga_turn.maxchanges);
		memset(c, 0, sizeof(*c));
		c->id = run->row.id;
	}
	c = &saga_turn.changes[run->change];
	c->state = state->state;
	c->direction = state->direction;
	c->cause = state->cause;
	if (state->direction == SAGA_UNDO || state->state == SAGA_STUCK)
	{
		c->failed_step = run->failed_step;
		c->sqlstate = MemoryContextStrdup(saga_turn_context, run->sqlstate);
		c->error = run->error;
	}
	if (SAGA_STATE_ENDED(state->state) && c->ended_at == 0)
		c->ended_at = now;
	c->ended_elsewhere = run->ended_elsewhere;
	run->written_state = state->state;
	run->written_direction = state->direction;
	run->written_cause = state->cause;
}

/* A replay decides these again in the same way; the others it does not. */
static bool
is_repeatable(uint8 kind)
{
	return kind == SAGA_RECORD_STARTED || kind == SAGA_RECORD_DONE ||
		kind == SAGA_RECORD_INTENT;
}

static void
absorb_records(SagaRun *run, TimestampTz now)
{
	for (int i = 0; i < decision.nrecords; i++)
	{
		const SagaRecord *r = &decision.records[i];
		SagaLogEntry *entry = APPEND(saga_turn.entries, saga_turn.nentries,
									 saga_turn.maxentries);

		memset(entry, 0, sizeof(*entry));
		entry->saga_id = run->row.id;
		entry->record = *r;
		entry->at = now;
		entry->step = r->node == SAGA_NO_NODE ? NULL : step_name(run, r->node);
		if (r->payload)
			entry->payload = *(const SagaPayload *) r->payload;
		if (r->kind == SAGA_RECORD_SKIPPED && entry->payload.result == NULL &&
			r->node >= 0 && run->skip_result)
			entry->payload.result = run->skip_result[r->node];
		remember_record(run, r, &entry->payload);
		if (r->kind == SAGA_RECORD_STUCK)
			note_stuck(run, r, now);
		if (!is_repeatable(r->kind))
			run->ordered = true;
		if (saga_turn_since == 0)
			saga_turn_since = now;
	}
}

static bool
is_local(const SagaRun *run, const SagaCommand *c)
{
	const SagaNode *node;

	if (c->node < 0)
		return true;
	node = &run->def->graph->nodes[c->node];
	if (c->op == SAGA_OP_UNDO)
		return node->compensation_local;
	if (c->op == SAGA_OP_CLAIM)
		return run->state->direction == SAGA_UNDO ? node->compensation_local :
			node->action_local;
	return node->action_local;
}

static void
absorb_commands(SagaRun *run)
{
	/* start_call() may feed again: the decision is copied first */
	int			n = decision.ncommands;
	SagaCommand *copies;

	if (n == 0)
		return;
	copies = palloc(sizeof(SagaCommand) * n);
	memcpy(copies, decision.commands, sizeof(SagaCommand) * n);
	for (int i = 0; i < n; i++)
	{
		SagaCommand *c = &copies[i];

		switch (c->kind)
		{
			case SAGA_CMD_CALL:
				if (is_local(run, c) && !run->ordered)
					start_call(run, c);
				else
				{
					Send	   *send = APPEND(sends, nsends, maxsends);

					send->saga_id = run->row.id;
					send->command = *c;
					saga_turn_flush = true;
				}
				break;
			case SAGA_CMD_CANCEL_CALL:
				break;			/* its answer will be ignored */
			case SAGA_CMD_ENDED:
				*APPEND(ended, nended, maxended) = run->row.id;
				saga_turn_flush = true;
				break;
		}
	}
	pfree(copies);
}

static void
absorb(SagaRun *run)
{
	TimestampTz now = saga_now();
	SagaTime	due;

	touch(run);
	absorb_records(run, now);
	if (decision.nrecords > 0)
		note_change(run, now);
	absorb_commands(run);
	due = SAGA_STATE_ENDED(run->state->state) ? SAGA_NEVER :
		saga_machine_next_due(run->state);
	set_due(run->known, due);
	run->evict = !SAGA_STATE_ENDED(run->state->state) && run->calls == 0 &&
		run->state->in_flight == 0 && (due == SAGA_NEVER || due > now + EVICT_AFTER);
}

void
saga_run_feed(SagaRun *run, SagaEvent *event, SagaPayload *payload)
{
	saga_current = run->row.id;
	saga_current_set = true;
	event->random = pg_prng_double(&pg_global_prng_state);
	event->payload = payload;
	decision.nrecords = decision.ncommands = 0;
	decision.ignored = NULL;
	saga_machine_decide(run->state, event, saga_now(), &decision);
	absorb(run);
	saga_current_set = false;
}

void
saga_run_answer(SagaCallOut *call, SagaAnswerKind answer, bool free,
				SagaPayload *payload)
{
	SagaRun    *run = call->run;
	SagaEvent	event;
	SagaOutcomeKey *key;

	memset(&event, 0, sizeof(event));
	event.kind = SAGA_EVENT_ANSWER;
	event.op = call->op;
	event.node = call->node;
	event.answer = answer;
	event.free = free;
	if (call->local && answer == SAGA_ANSWER_DONE &&
		(run != NULL || saga_known(&call->saga_id, false) == NULL))
	{
		/* also when the saga is gone; not when it is only set aside */
		key = APPEND(saga_turn.outcomes, saga_turn.noutcomes, saga_turn.maxoutcomes);
		key->saga_id = call->saga_id;
		key->node = call->node;
		key->op = call->op == SAGA_OP_UNDO ? 'c' : call->op == SAGA_OP_HOOK ? 'h' : 'a';
		if (run && call->node == SAGA_NODE_END)
			run->ended_elsewhere = true;
	}
	saga_call_done(call);
	if (run)
		saga_run_feed(run, &event, payload);
}

void
saga_run_lost(SagaCallOut *call)
{
	SagaRun    *run = call->run;
	SagaEvent	event;

	memset(&event, 0, sizeof(event));
	event.kind = SAGA_EVENT_LOST;
	event.op = call->op;
	event.node = call->node;
	saga_call_done(call);
	if (run)
		saga_run_feed(run, &event, NULL);
}

/* ----------------------------------------------------------- the calls */

void
saga_run_values(SagaRun *run, int node, SagaOp op, int attempt, SagaValues *v)
{
	memset(v, 0, sizeof(*v));
	v->saga_id = run->row.id;
	v->saga_name = run->def->name;
	v->saga_key = run->row.key;
	v->step_name = step_name(run, node);
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
	SagaOp		op = c->op;

	if (op == SAGA_OP_CLAIM)
		op = run->state->direction == SAGA_UNDO ? SAGA_OP_UNDO : SAGA_OP_ACTION;
	return saga_exec_call(run->def, c->node, op, hook);
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
	memset(&request, 0, sizeof(request));
	request.tag = out->tag;
	request.mode = c->op == SAGA_OP_CLAIM ? SAGA_REQUEST_CLAIM :
		c->op == SAGA_OP_UNDO && c->conditional ? SAGA_REQUEST_UNDO : SAGA_REQUEST_RUN;
	request.server = server;
	request.saga_id = run->row.id;
	request.saga_name = run->def->name;
	request.step = step_name(run, c->node);
	request.op = c->op == SAGA_OP_CLAIM ?
		(run->state->direction == SAGA_UNDO ? SAGA_OP_UNDO : SAGA_OP_ACTION) : c->op;
	request.tmpl = call->tmpl;
	request.values = values;
	request.shape = call->shape;
	request.expect_rows = call->expect_rows;
	request.timeout_ms = call->timeout_ms;
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

		if (entry->server == NULL || entry->generation != saga_server_generation())
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

void
saga_recovered_outcomes(SagaOutcome *outcomes, int n)
{
	MemoryContext old = MemoryContextSwitchTo(runs_context);

	for (int i = 0; i < n; i++)
	{
		SagaOutcome *copy = palloc(sizeof(SagaOutcome));

		*copy = outcomes[i];
		if (copy->result)
		{
			copy->result = palloc(VARSIZE(outcomes[i].result));
			memcpy(copy->result, outcomes[i].result, VARSIZE(outcomes[i].result));
		}
		recovered = lappend(recovered, copy);
	}
	MemoryContextSwitchTo(old);
}

/*
 * A local call that a predecessor's executor committed and nobody logged: its
 * outcome is the answer, and it must not run again.
 */
static bool
answered_before(SagaCallOut *call)
{
	ListCell   *cell;
	char		op = call->op == SAGA_OP_UNDO ? 'c' : call->op == SAGA_OP_HOOK ? 'h' : 'a';

	foreach(cell, recovered)
	{
		SagaOutcome *outcome = lfirst(cell);
		SagaPayload *payload;

		if (outcome->key.node != call->node || outcome->key.op != op ||
			memcmp(&outcome->key.saga_id, &call->saga_id, UUID_LEN) != 0)
			continue;
		payload = MemoryContextAllocZero(saga_turn_context, sizeof(SagaPayload));
		if (outcome->result)
		{
			payload->result = MemoryContextAlloc(saga_turn_context, VARSIZE(outcome->result));
			memcpy(payload->result, outcome->result, VARSIZE(outcome->result));
			pfree(outcome->result);
		}
		recovered = foreach_delete_current(recovered, cell);
		pfree(outcome);
		saga_run_answer(call, SAGA_ANSWER_DONE, false, payload);
		return true;
	}
	return false;
}

/* In a transaction: names are resolved, servers looked up. */
static void
start_call(SagaRun *run, const SagaCommand *c)
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
						step_name(run, c->node), run->def->name)));
	out = saga_call_out(run, call, c->node, c->op, hook, c->attempt);
	out->conditional = c->conditional;
	out->local = is_local(run, c);
	if (out->local && answered_before(out))
		return;
	saga_run_values(run, c->node, c->op, c->attempt, &values);
	bound = palloc0(sizeof(char *) * Max(call->tmpl->nparams, 1));
	if (c->op != SAGA_OP_CLAIM)
		saga_template_bind(call->tmpl, &values, bound);
	if (out->local)
		saga_dispatch_local(out, bound);
	else
		start_remote(run, out, c, bound);
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
	return c->op == SAGA_OP_CLAIM ? step->claiming : step->in_flight;
}

bool
saga_sends_held(void)
{
	return held_first != NULL;
}

void
saga_sends_release(XLogRecPtr durable)
{
	while (held_first && held_first->lsn <= durable)
	{
		SendBatch  *batch = held_first;

		held_first = batch->next;
		if (held_first == NULL)
			held_last = NULL;
		for (int i = 0; i < batch->n; i++)
		{
			Known	   *known = saga_known(&batch->sends[i].saga_id, false);

			if (known && known->run &&
				still_wanted(known->run, &batch->sends[i].command))
			{
				saga_current = known->id;
				saga_current_set = true;
				start_call(known->run, &batch->sends[i].command);
				saga_current_set = false;
			}
		}
		MemoryContextDelete(batch->context);
	}
}

/* Before the turn is written: what leaves memory leaves its wake-up time. */
void
saga_turn_prepare(void)
{
	for (int i = 0; i < ntouched; i++)
	{
		SagaRun    *run = touched[i];
		SagaWakeup *w;

		if (!run->evict || run->calls > 0 || run->known->has_wakeup)
			continue;
		w = APPEND(saga_turn.wakeups, saga_turn.nwakeups, saga_turn.maxwakeups);
		w->saga_id = run->row.id;
		w->due = run->known->due == SAGA_NEVER ? DT_NOEND : run->known->due;
		run->known->has_wakeup = true;
	}
}

/* The turn's rows are committed up to lsn: let go of what waited for that. */
void
saga_turn_written(XLogRecPtr lsn)
{
	if (nsends > 0)
	{
		MemoryContext context = AllocSetContextCreate(TopMemoryContext, "saga sends",
													  ALLOCSET_SMALL_SIZES);
		SendBatch  *batch = MemoryContextAllocZero(context, sizeof(SendBatch));

		batch->lsn = lsn;
		batch->context = context;
		batch->n = nsends;
		batch->sends = MemoryContextAllocHuge(context, sizeof(Send) * nsends);
		memcpy(batch->sends, sends, sizeof(Send) * nsends);
		if (held_last)
			held_last->next = batch;
		else
			held_first = batch;
		held_last = batch;
	}
	saga_waiters_wake(ended, nended);
	for (int i = 0; i < ntouched; i++)
	{
		SagaRun    *run = touched[i];

		run->touched = false;
		run->ordered = false;
		run->change = -1;
		if (SAGA_STATE_ENDED(run->state->state))
			free_run(run, true);
		else if (run->known->has_wakeup)
			free_run(run, false);
	}
	memset(&saga_turn, 0, sizeof(saga_turn));
	sends = NULL;
	nsends = maxsends = 0;
	touched = NULL;
	ntouched = maxtouched = 0;
	ended = NULL;
	nended = maxended = 0;
	saga_turn_flush = false;
	saga_turn_since = 0;
	MemoryContextReset(saga_turn_context);
}

/* -------------------------------------------------------- taking sagas in */

static SagaRun *
new_run(Known *known, const SagaInstanceRow *row, SagaDefinition *def,
		MemoryContext context)
{
	SagaRun    *run;
	SagaArena	arena;
	MemoryContext old = MemoryContextSwitchTo(context);

	run = palloc0(sizeof(SagaRun));
	run->row = *row;
	run->context = context;
	run->def = def;
	run->known = known;
	run->change = -1;
	if (known->has_wakeup)
	{
		SagaWakeup *w = APPEND(saga_turn.wakeups, saga_turn.nwakeups, saga_turn.maxwakeups);

		w->saga_id = row->id;
		w->due = 0;
		known->has_wakeup = false;
	}
	run->results = palloc0(sizeof(Jsonb *) * Max(def->graph->nnodes, 1));
	run->started_by = GetUserNameFromId(row->started_by, true);
	arena.alloc = arena_alloc;
	arena.context = context;
	run->state = saga_machine_create(def->graph,
									 row->deadline == DT_NOEND ? SAGA_NEVER : row->deadline,
									 &arena);
	run->written_state = run->state->state;
	run->written_direction = run->state->direction;
	run->written_cause = run->state->cause;
	MemoryContextSwitchTo(old);
	known->run = run;
	loaded++;
	return run;
}

static void
replay(SagaRun *run, List *entries)
{
	ListCell   *cell;

	foreach(cell, entries)
	{
		SagaLogEntry *entry = lfirst(cell);

		if (!saga_machine_apply(run->state, &entry->record))
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("record %d of the log of saga %s cannot follow the ones before it",
							entry->record.seq,
							DatumGetCString(DirectFunctionCall1(uuid_out,
																UUIDPGetDatum(&run->row.id)))),
					 errhint("Look at saga.log; saga.terminate() with force ends the saga.")));
		remember_record(run, &entry->record, &entry->payload);
		if (entry->record.kind == SAGA_RECORD_STUCK)
			run->stuck_written = true;
	}
	run->written_state = run->state->state;
	run->written_direction = run->state->direction;
	run->written_cause = run->state->cause;
}

/* Bring one saga into memory; NULL if it is no more, or not yet. */
static SagaRun *
take_in(Known *known)
{
	MemoryContext context = AllocSetContextCreate(runs_context, "saga",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	SagaInstanceRow row;
	SagaDefinition *def;
	SagaRun    *run;
	SagaEvent	event;
	List	   *entries = NIL;

	if (!saga_log_read_instance(&known->id, &row))
	{
		MemoryContextSwitchTo(old);
		MemoryContextDelete(context);
		forget_known(known);
		return NULL;
	}
	MemoryContextSwitchTo(old);
	if (row.state == SAGA_PENDING && row.start_at > saga_now())
	{
		set_due(known, row.start_at);
		MemoryContextDelete(context);
		return NULL;
	}
	def = saga_definition_by_id(row.definition_id);
	if (def == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("definition " INT64_FORMAT " does not exist", row.definition_id)));
	if (known->outcomes_unread)
	{
		int			n;
		SagaOutcome *outcomes = saga_log_read_outcomes(UINT64CONST(1) << saga_bucket(&known->id),
													   &known->id, &n);

		saga_recovered_outcomes(outcomes, n);
		known->outcomes_unread = false;
	}
	run = new_run(known, &row, def, context);
	if (row.state == SAGA_PENDING)
	{
		memset(&event, 0, sizeof(event));
		event.kind = SAGA_EVENT_START;
		event.node = SAGA_NO_NODE;
		saga_run_feed(run, &event, NULL);
		return run;
	}
	entries = saga_log_read(&known->id, node_of_step, def);
	if (entries == NIL && row.ended)
	{
		free_run(run, true);
		return NULL;
	}
	replay(run, entries);
	list_free_deep(entries);
	if (SAGA_STATE_ENDED(run->state->state))
	{
		free_run(run, true);
		return NULL;
	}
	decision.nrecords = decision.ncommands = 0;
	decision.ignored = NULL;
	saga_machine_resume(run->state, saga_now(), &decision);
	absorb(run);
	run->evict = false;
	return run;
}

static SagaVerb
verb_of(const char *name)
{
	for (int v = SAGA_VERB_CANCEL; v <= SAGA_VERB_SKIP_STEP; v++)
		if (strcmp(saga_verb_name(v), name) == 0)
			return v;
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("unknown verb \"%s\" in saga.inbox", name)));
}

static void
consume_inbox(int64 id)
{
	SagaInboxRow row;
	Known	   *known;
	SagaRun    *run;
	SagaEvent	event;
	SagaPayload *payload;

	if (!saga_log_read_inbox(id, &row))
		return;					/* consumed before */
	*APPEND(saga_turn.inbox, saga_turn.ninbox, saga_turn.maxinbox) = id;
	if (saga_turn_since == 0)
		saga_turn_since = saga_now();
	saga_turn_flush = true;
	known = saga_known(&row.saga_id, true);
	run = known->run ? known->run : take_in(known);
	if (run == NULL)
		return;
	memset(&event, 0, sizeof(event));
	event.kind = SAGA_EVENT_VERB;
	event.verb = verb_of(row.verb);
	event.force = row.force;
	event.node = row.step ? node_of_step(run->def, row.step) : SAGA_NO_NODE;
	payload = MemoryContextAllocZero(saga_turn_context, sizeof(SagaPayload));
	payload->actor = MemoryContextStrdup(saga_turn_context, row.actor);
	payload->note = row.note ? MemoryContextStrdup(saga_turn_context, row.note) : NULL;
	if (event.verb == SAGA_VERB_SKIP_STEP && event.node >= 0 && row.result)
	{
		if (run->skip_result == NULL)
			run->skip_result = MemoryContextAllocZero(run->context,
													  sizeof(Jsonb *) * run->def->graph->nnodes);
		run->skip_result[event.node] = keep_result(run, row.result);
		payload->result = run->skip_result[event.node];
	}
	saga_run_feed(run, &event, payload);
}

static bool
is_ours(uint64 buckets, const pg_uuid_t *id)
{
	return (buckets & (UINT64CONST(1) << saga_bucket(id))) != 0;
}

void
saga_runs_admit(uint64 buckets, int max)
{
	while (max-- > 0 && saga_arrivals_pending())
	{
		SagaRingEntry entry;
		Known	   *known;

		if (commands.head < commands.tail)
		{
			entry = commands.entries[commands.head++ % commands.size];
			saga_current = entry.saga_id;
			saga_current_set = true;
			if (is_ours(buckets, &entry.saga_id))
				consume_inbox(entry.inbox_id);
			continue;
		}
		entry = arrivals.entries[arrivals.head++ % arrivals.size];
		saga_current = entry.saga_id;
		saga_current_set = true;
		known = saga_known(&entry.saga_id, true);
		known->queued = false;
		if (!is_ours(buckets, &entry.saga_id))
			forget_known(known);
		else if (known->run == NULL)
			(void) take_in(known);
	}
	saga_current_set = false;
}

void
saga_runs_timers(SagaTime now)
{
	while (!pairingheap_is_empty(timers))
	{
		Known	   *known = pairingheap_container(Known, node, pairingheap_first(timers));
		SagaEvent	event;

		if (known->due > now)
			break;
		set_due(known, SAGA_NEVER);
		if (known->run == NULL)
		{
			saga_arrive(&known->id, 0);
			continue;
		}
		memset(&event, 0, sizeof(event));
		event.kind = SAGA_EVENT_TIMER;
		event.node = SAGA_NO_NODE;
		saga_run_feed(known->run, &event, NULL);
		if (known->due <= now)
			set_due(known, now + SAGA_SECOND / 20);	/* nothing came of it */
	}
}

SagaTime
saga_runs_next_due(void)
{
	if (pairingheap_is_empty(timers))
		return SAGA_NEVER;
	return pairingheap_container(Known, node, pairingheap_first(timers))->due;
}

/* ------------------------------------------------------- what went wrong */

/*
 * Work on this saga raised an error.  Nothing of it that is not written counts
 * any more: it is dropped from the turn and from memory, and taken in again
 * from its log later.  The others go on.
 */
void
saga_run_set_aside(const pg_uuid_t *id)
{
	Known	   *known = saga_known(id, true);
	SagaTurn   *t = &saga_turn;
	int			kept = 0;

	for (int i = 0; i < t->nentries; i++)
		if (memcmp(&t->entries[i].saga_id, id, UUID_LEN) != 0)
			t->entries[kept++] = t->entries[i];
	t->nentries = kept;
	for (int i = 0; i < t->nchanges; i++)
		if (memcmp(&t->changes[i].id, id, UUID_LEN) == 0)
			t->changes[i].ended_elsewhere = true;	/* write nothing */
	kept = 0;
	for (int i = 0; i < t->nstuck; i++)
		if (memcmp(&t->stuck[i].saga_id, id, UUID_LEN) != 0)
			t->stuck[kept++] = t->stuck[i];
	t->nstuck = kept;
	kept = 0;
	for (int i = 0; i < t->noutcomes; i++)
		if (memcmp(&t->outcomes[i].saga_id, id, UUID_LEN) != 0)
			t->outcomes[kept++] = t->outcomes[i];
	t->noutcomes = kept;
	kept = 0;
	for (int i = 0; i < nsends; i++)
		if (memcmp(&sends[i].saga_id, id, UUID_LEN) != 0)
			sends[kept++] = sends[i];
	nsends = kept;
	kept = 0;
	for (int i = 0; i < ntouched; i++)
		if (touched[i] != known->run)
			touched[kept++] = touched[i];
	ntouched = kept;
	if (known->run)
		free_run(known->run, false);
	known->queued = false;
	known->outcomes_unread = true;
	set_due(known, saga_now() + SET_ASIDE_FOR);
}
