/*
 * turn.c
 *		Events to the machine, its decisions to the rows of a turn.
 *
 * Called by runs.c, calls.c and coordinator.c.  Owns the turn being gathered:
 * what is decided and not yet written.
 *
 * Order is all here.  A remote call goes out when the turn that holds its
 * intent is flushed.  A local call goes out at once, unless its saga has
 * unwritten records that a replay would not decide again in the same way (a
 * failure, a verb, the turn to undo): then it waits for the commit, and since
 * the executor's commit comes later in the WAL, no crash can keep the effect
 * and lose the decision.
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "utils/memutils.h"

#include "compat.h"
#include "coordinator.h"
#include "child.h"
#include "guc.h"
#include "signals.h"
#include "two_phase.h"

/*
 * A saga with nothing to do for this long leaves memory; the shorter time is
 * for when so many are there that those to come need the room.
 */
#define EVICT_AFTER			(60 * SAGA_SECOND)
#define EVICT_SOON_AFTER	(1 * SAGA_SECOND)
#define EVICT_SOON_ABOVE	1000

/* An end that met a signal is decided again after this. */
#define END_AGAIN_AFTER		(SAGA_SECOND / 20)

SagaTurn	saga_turn;
MemoryContext saga_turn_context;
bool		saga_turn_flush = false;
bool		saga_turn_commit = false;
TimestampTz saga_turn_since = 0;

static SagaRun **touched;
static int	ntouched = 0,
			maxtouched = 0;
static pg_uuid_t *ended;
static int	nended = 0,
			maxended = 0;
static SagaDecision decision;
static SagaArena decision_arena;

static void *
arena_alloc(SagaArena *arena, size_t size)
{
	return MemoryContextAllocZero(arena->context, size);
}

void
saga_turn_init(void)
{
	saga_turn_context = AllocSetContextCreate(TopMemoryContext, "saga turn",
											  ALLOCSET_DEFAULT_SIZES);
	decision_arena.alloc = arena_alloc;
	decision_arena.context = AllocSetContextCreate(TopMemoryContext, "saga decision",
												   ALLOCSET_DEFAULT_SIZES);
	decision.arena = &decision_arena;
}

static void
touch(SagaRun *run)
{
	if (run->touched)
		return;
	run->touched = true;
	*SAGA_APPEND(touched, ntouched, maxtouched) = run;
}

/* ------------------------------------------------------------ decisions */

static void
note_stuck(SagaRun *run, const SagaRecord *r, TimestampTz now)
{
	SagaStuckChange *s = SAGA_APPEND(saga_turn.stuck, saga_turn.nstuck, saga_turn.maxstuck);

	memset(s, 0, sizeof(*s));
	s->saga_id = run->row.id;
	s->stuck = true;
	s->step = saga_step_name(run, r->node);
	s->operation = s->step ? saga_op_name(r->op) : NULL;
	s->reason = saga_stuck_reason_name(r->reason);
	s->sqlstate = MemoryContextStrdup(saga_turn_context, run->sqlstate);
	s->message = run->error;
	s->since = now;
	run->stuck_written = true;
}

/* What the row will say after this turn. */
static void
fill_change(SagaRun *run, SagaInstanceChange *c, TimestampTz now)
{
	SagaState  *state = run->state;

	c->state = state->state;
	c->direction = state->direction;
	c->cause = state->cause;
	c->failed_step = c->sqlstate = c->error = NULL;
	if (state->direction == SAGA_UNDO)
	{
		c->failed_step = run->failed_step;
		c->sqlstate = run->failed_sqlstate;
		c->error = run->failed_error;
	}
	else if (state->state == SAGA_STUCK)
	{
		c->failed_step = saga_step_name(run, state->stuck_node);
		c->sqlstate = MemoryContextStrdup(saga_turn_context, run->sqlstate);
		c->error = run->error;
	}
	if (SAGA_STATE_ENDED(state->state) && c->ended_at == 0)
		c->ended_at = now;
	if (!SAGA_STATE_ENDED(state->state) &&
		(SAGA_STATE_ENDED(run->written_state) || c->ended_at != 0))
	{
		/* a child that had completed is undone */
		c->reopened = true;
		c->ended_at = 0;
		run->ended_elsewhere = false;
	}
	c->ended_elsewhere = run->ended_elsewhere;
	c->holds = run->holds;
	run->written_state = state->state;
	run->written_direction = state->direction;
	run->written_cause = state->cause;
}

/* The change of its row in this turn. */
SagaInstanceChange *
saga_run_change(SagaRun *run)
{
	SagaInstanceChange *c;

	if (run->change >= 0)
		return &saga_turn.changes[run->change];
	run->change = saga_turn.nchanges;
	c = SAGA_APPEND(saga_turn.changes, saga_turn.nchanges, saga_turn.maxchanges);
	memset(c, 0, sizeof(*c));
	c->id = run->row.id;
	fill_change(run, c, saga_now());
	return c;
}

static void
note_change(SagaRun *run, TimestampTz now)
{
	SagaState  *state = run->state;

	if (run->stuck_written && state->state != SAGA_STUCK)
	{
		SagaStuckChange *s = SAGA_APPEND(saga_turn.stuck, saga_turn.nstuck, saga_turn.maxstuck);

		memset(s, 0, sizeof(*s));
		s->saga_id = run->row.id;
		run->stuck_written = false;
	}
	if (run->change < 0 && run->written_state == state->state &&
		run->written_direction == state->direction &&
		run->written_cause == state->cause)
		return;
	fill_change(run, saga_run_change(run), now);
}

/* A replay decides these again in the same way; the others it does not. */
static bool
is_repeatable(uint8 kind)
{
	return kind == SAGA_RECORD_STARTED || kind == SAGA_RECORD_DONE ||
		kind == SAGA_RECORD_INTENT;
}

/* Steps that are begun anew reserve anew. */
static void
note_replaced(SagaRun *run)
{
	for (int i = 0; i < run->state->nsteps; i++)
		if (run->state->steps[i].replaced)
		{
			SagaOutcomeKey *key = SAGA_APPEND(saga_turn.replaced, saga_turn.nreplaced,
											  saga_turn.maxreplaced);

			memset(key, 0, sizeof(*key));
			key->saga_id = run->row.id;
			key->node = i;
		}
}

static void
log_record(SagaRun *run, const SagaRecord *r, TimestampTz now)
{
	SagaLogEntry *entry = SAGA_APPEND(saga_turn.entries, saga_turn.nentries,
									  saga_turn.maxentries);

	memset(entry, 0, sizeof(*entry));
	entry->saga_id = run->row.id;
	entry->record = *r;
	entry->at = now;
	entry->step = r->node == SAGA_NO_NODE ? NULL : saga_step_name(run, r->node);
	if (r->payload)
		entry->payload = *(const SagaPayload *) r->payload;
	saga_complete_payload(run, r, &entry->payload);
	saga_remember_record(run, r, &entry->payload);
	if (r->kind == SAGA_RECORD_STUCK)
		note_stuck(run, r, now);
	if (r->kind == SAGA_RECORD_RESTARTED && run->holds)
		note_replaced(run);
	if (r->kind == SAGA_RECORD_DEADLINE)
	{
		SagaInstanceChange *c = saga_run_change(run);

		c->has_deadline = true;
		c->deadline = run->row.deadline = r->due == 0 ? DT_NOEND : r->due;
	}
	if (!is_repeatable(r->kind))
		run->ordered = true;
	if (saga_turn_since == 0)
		saga_turn_since = now;
}

static void
absorb_records(SagaRun *run, TimestampTz now)
{
	for (int i = 0; i < decision.nrecords; i++)
		log_record(run, &decision.records[i], now);
}

/* A record that decides nothing: what an operator has changed. */
void
saga_run_note(SagaRun *run, SagaRecordKind kind, int step, SagaPayload *payload)
{
	SagaRecord	record;

	memset(&record, 0, sizeof(record));
	record.kind = kind;
	record.node = step;
	record.op = SAGA_OP_ACTION;
	record.seq = run->state->seq + 1;
	record.payload = payload;
	if (!saga_machine_apply(run->state, &record))
		elog(ERROR, "record %d cannot be logged now", (int) kind);
	touch(run);
	log_record(run, &record, saga_now());
	saga_turn_flush = true;
}

static void
absorb_commands(SagaRun *run)
{
	/* saga_start_call() may feed again: the decision is copied first */
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
				if (saga_starts_at_once(run, c))
					saga_start_call(run, c);
				else
					saga_send_later(run, c);
				break;
			case SAGA_CMD_CANCEL_CALL:
				saga_call_cancel(run, c->node, c->op);
				break;
			case SAGA_CMD_ENDED:
				*SAGA_APPEND(ended, nended, maxended) = run->row.id;
				saga_turn_flush = true;
				break;
		}
	}
	pfree(copies);
}

/* Of an ended saga no step waits for an answer, nor is one for saga.take(). */
static void
take_offers_back(SagaRun *run)
{
	for (int i = 0; i < run->def->graph->nnodes; i++)
		if (run->def->action[i] && run->def->action[i]->callback)
		{
			SagaQueued *q = SAGA_APPEND(saga_turn.queued, saga_turn.nqueued,
										saga_turn.maxqueued);

			memset(q, 0, sizeof(*q));
			q->saga_id = run->row.id;
			q->removed = true;
			return;
		}
}

static void
absorb(SagaRun *run)
{
	TimestampTz now = saga_now();
	SagaTime	due;

	touch(run);
	saga_run_grow(run);
	absorb_records(run, now);
	if (decision.nrecords > 0)
		note_change(run, now);
	absorb_commands(run);
	due = SAGA_STATE_ENDED(run->state->state) ? SAGA_NEVER :
		saga_machine_next_due(run->state);
	saga_set_due(run->known, due);
	run->evict = !SAGA_STATE_ENDED(run->state->state) && run->calls == 0 &&
		saga_machine_may_evict(run->state) &&
		(due == SAGA_NEVER ||
		 due > now + (saga_runs_loaded() > EVICT_SOON_ABOVE ? EVICT_SOON_AFTER : EVICT_AFTER));
	if (SAGA_STATE_ENDED(run->state->state))
		take_offers_back(run);
}

bool
saga_run_feed(SagaRun *run, SagaEvent *event, SagaPayload *payload)
{
	const char *ignored;

	saga_current = run->row.id;
	saga_current_set = true;
	event->random = pg_prng_double(&pg_global_prng_state);
	event->payload = payload;
	decision.nrecords = decision.ncommands = 0;
	decision.ignored = NULL;
	saga_machine_decide(run->state, event, saga_now(), &decision);
	ignored = decision.ignored;
	absorb(run);
	saga_current_set = false;
	return ignored == NULL;
}

void
saga_run_answer(SagaCallOut *call, SagaAnswerKind answer, bool free,
				SagaPayload *payload)
{
	SagaRun    *run = call->run;
	bool		ends = call->local && call->node == SAGA_NODE_END &&
		answer == SAGA_ANSWER_DONE;
	SagaOutcomeKey key;
	SagaEvent	event;
	bool		used = false;

	memset(&event, 0, sizeof(event));
	event.kind = SAGA_EVENT_ANSWER;
	event.op = call->op;
	event.node = call->node;
	event.answer = call->call ? saga_branch_answer(call->call, call->op, answer) : answer;
	event.free = free;
	event.value = call->value;
	event.retry_after = call->retry_after;
	key.saga_id = call->saga_id;
	key.node = call->node;
	key.op = saga_outcome_op(call->op);
	if (call->local && call->eval == SAGA_EVAL_NONE && answer == SAGA_ANSWER_DONE)
		used = run == NULL && saga_known(&call->saga_id, false) == NULL;
	else
		key.op = 0;				/* nothing stands in the table */
	saga_call_done(call);
	if (run)
	{
		if (ends)
			run->ended_elsewhere = true;
		used = saga_run_feed(run, &event, payload);
	}
	/* an outcome nobody has taken stays, unless its saga is no more */
	if (key.op != 0 && used)
		*SAGA_APPEND(saga_turn.outcomes, saga_turn.noutcomes, saga_turn.maxoutcomes) = key;
}

/* A local action that a predecessor's executor committed and nobody logged. */
void
saga_run_recovered(SagaRun *run, const SagaOutcome *outcome)
{
	SagaPayload *payload = MemoryContextAllocZero(saga_turn_context, sizeof(SagaPayload));
	SagaEvent	event;

	if (outcome->result)
	{
		payload->result = MemoryContextAlloc(saga_turn_context, VARSIZE(outcome->result));
		memcpy(payload->result, outcome->result, VARSIZE(outcome->result));
	}
	memset(&event, 0, sizeof(event));
	event.kind = SAGA_EVENT_ANSWER;
	event.op = outcome->key.op == 'c' ? SAGA_OP_UNDO :
		outcome->key.op == 'h' ? SAGA_OP_HOOK : SAGA_OP_ACTION;
	event.node = outcome->key.node;
	event.answer = SAGA_ANSWER_DONE;
	run->holds = true;
	if (event.node == SAGA_NODE_END)
		run->ended_elsewhere = true;
	if (saga_run_feed(run, &event, payload))
		*SAGA_APPEND(saga_turn.outcomes, saga_turn.noutcomes, saga_turn.maxoutcomes) = outcome->key;
}

void
saga_run_lost(SagaCallOut *call)
{
	SagaRun    *run = call->run;
	SagaEvent	event;

	if (run && call->eval != SAGA_EVAL_NONE)
	{
		saga_call_again(call, call->solo);
		return;
	}

	memset(&event, 0, sizeof(event));
	event.kind = SAGA_EVENT_LOST;
	event.op = call->op;
	event.node = call->node;
	saga_call_done(call);
	if (run)
		saga_run_feed(run, &event, NULL);
}


/* After its log was replayed: go on from there. */
void
saga_run_resume(SagaRun *run)
{
	decision.nrecords = decision.ncommands = 0;
	decision.ignored = NULL;
	saga_machine_resume(run->state, saga_now(), &decision);
	absorb(run);
	run->evict = false;
}

/*
 * The end of a saga is decided, but a signal for it may be coming, in a
 * transaction that has not ended: all but the end is written, and that is
 * decided again soon.
 */
static void
undo_end(SagaRun *run)
{
	int			kept = 0;

	for (int i = 0; i < saga_turn.nentries; i++)
	{
		SagaLogEntry *e = &saga_turn.entries[i];

		if (e->record.kind != SAGA_RECORD_ENDED ||
			memcmp(&e->saga_id, &run->row.id, UUID_LEN) != 0)
			saga_turn.entries[kept++] = *e;
	}
	saga_turn.nentries = kept;
	kept = 0;
	for (int i = 0; i < nended; i++)
		if (memcmp(&ended[i], &run->row.id, UUID_LEN) != 0)
			ended[kept++] = ended[i];
	nended = kept;
	if (run->change >= 0)
	{
		saga_turn.changes[run->change].state = SAGA_RUNNING;
		saga_turn.changes[run->change].ended_at = 0;
	}
	run->end_undone = true;
}

/* Signals that came after all was over: in the log, before the end. */
static void
log_late_signals(SagaRun *run)
{
	SagaLogEntry *late;
	int			n;
	int			end = saga_turn.nentries - 1;

	while (end >= 0 && (saga_turn.entries[end].record.kind != SAGA_RECORD_ENDED ||
						memcmp(&saga_turn.entries[end].saga_id, &run->row.id, UUID_LEN) != 0))
		end--;
	if (end < 0)
		return;
	late = saga_inbox_late_signals(run, &n);
	for (int i = 0; i < n; i++)
	{
		SagaLogEntry *entry = SAGA_APPEND(saga_turn.entries, saga_turn.nentries,
										  saga_turn.maxentries);

		*entry = late[i];
		entry->record.seq = saga_turn.entries[end].record.seq++;
	}
}

/*
 * A session that sends a signal holds the lock of its saga's end until it has
 * committed; whoever ends the saga holds it, too, and looks for signals then.
 * So a signal that was accepted is in the log before the end is.
 */
static void
look_for_signals(void)
{
	bool		locked = false;

	for (int i = 0; i < ntouched; i++)
	{
		SagaRun    *run = touched[i];

		if (!SAGA_STATE_ENDED(run->state->state) || run->ended_elsewhere ||
			run->end_undone || run->def->graph->nsignals == 0)
			continue;
		if (saga_end_lock(&run->row.id))
			locked = true;
		else
			undo_end(run);
	}
	if (!locked)
		return;
	saga_worker_look_again();
	for (int i = 0; i < ntouched; i++)
	{
		SagaRun    *run = touched[i];

		if (SAGA_STATE_ENDED(run->state->state) && !run->ended_elsewhere &&
			run->def->graph->nsignals > 0 && !run->end_undone)
			log_late_signals(run);
	}
}

/*
 * Before the turn is written: ends that may not be yet, and of what leaves
 * memory its wake-up time.
 */
void
saga_turn_prepare(void)
{
	look_for_signals();
	for (int i = 0; i < ntouched; i++)
	{
		SagaRun    *run = touched[i];
		SagaWakeup *w;

		if (SAGA_STATE_ENDED(run->state->state) && !run->end_undone && !run->told)
		{
			saga_child_tell(run);
			run->told = true;
		}
		if (!run->evict || run->calls > 0 || run->known->has_wakeup)
			continue;
		w = SAGA_APPEND(saga_turn.wakeups, saga_turn.nwakeups, saga_turn.maxwakeups);
		w->saga_id = run->row.id;
		w->due = run->known->due == SAGA_NEVER ? DT_NOEND : run->known->due;
		run->known->has_wakeup = true;
		run->known->clean = true;
	}
}

/* It goes on with another version: read it again. */
static void
reload(SagaRun *run)
{
	Known	   *known = run->known;
	pg_uuid_t	id = run->row.id;

	known->clean = true;
	saga_run_free(run, false);
	saga_arrive(&id, 0, known->priority);
}

/* The turn's rows are committed up to lsn: let go of what waited for that. */
void
saga_turn_written(XLogRecPtr lsn)
{
	saga_sends_hold(lsn);
	saga_commands_written();
	saga_waiters_wake(ended, nended);
	for (int i = 0; i < ntouched; i++)
	{
		SagaRun    *run = touched[i];

		run->touched = false;
		run->ordered = false;
		run->change = -1;
		if (run->end_undone)
		{
			Known	   *known = run->known;

			saga_run_free(run, false);
			saga_set_due(known, saga_now() + END_AGAIN_AFTER);
		}
		else if (run->reload)
			reload(run);
		else if (SAGA_STATE_ENDED(run->state->state))
		{
			if (run->row.scheduled)
				saga_schedules_wake();
			saga_run_free(run, true);
		}
		else if (run->known->has_wakeup)
			saga_run_free(run, false);
	}
	memset(&saga_turn, 0, sizeof(saga_turn));
	touched = NULL;
	ntouched = maxtouched = 0;
	ended = NULL;
	nended = maxended = 0;
	saga_turn_flush = saga_turn_commit = false;
	saga_turn_since = 0;
	MemoryContextReset(saga_turn_context);
}

/* Nothing of this saga that is not written counts any more. */
void
saga_turn_drop(const pg_uuid_t *id, const SagaRun *run)
{
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
	for (int i = 0; i < t->nmessages; i++)
		if (memcmp(&t->messages[i].from, id, UUID_LEN) != 0)
			t->messages[kept++] = t->messages[i];
	t->nmessages = kept;
	kept = 0;
	for (int i = 0; i < t->nreplaced; i++)
		if (memcmp(&t->replaced[i].saga_id, id, UUID_LEN) != 0)
			t->replaced[kept++] = t->replaced[i];
	t->nreplaced = kept;
	kept = 0;
	for (int i = 0; i < t->nqueued; i++)
		if (memcmp(&t->queued[i].saga_id, id, UUID_LEN) != 0)
			t->queued[kept++] = t->queued[i];
	t->nqueued = kept;
	saga_sends_drop(id);
	kept = 0;
	for (int i = 0; i < ntouched; i++)
		if (touched[i] != run)
			touched[kept++] = touched[i];
	ntouched = kept;
}
