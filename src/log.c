/*
 * log.c
 *		The durable side of a saga (see log.h): writing one turn, and looking
 *		up single rows.  log_read.c reads logs and lists.
 *
 * Called by coordinator.c inside a transaction that saga_worker_begin() began.
 * Decides nothing (machine.c does) and knows no network.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"

#include "compat.h"
#include "isolation.h"
#include "log.h"
#include "rows.h"

enum
{
	LOG_SAGA, LOG_SEQ, LOG_AT, LOG_KIND, LOG_STEP, LOG_OPERATION, LOG_ATTEMPT,
	LOG_OUTCOME, LOG_MAYBE, LOG_STATE, LOG_CAUSE, LOG_REASON, LOG_DUE,
	LOG_SQLSTATE, LOG_MESSAGE, LOG_RESULT, LOG_ACTOR, LOG_NOTE, LOG_VALUE,
	LOG_COLUMNS
};

enum
{
	INST_ID, INST_BUCKET, INST_DEFINITION, INST_STATE, INST_DIRECTION,
	INST_CAUSE, INST_KEY, INST_INPUT, INST_OUTPUT, INST_FAILED_STEP,
	INST_SQLSTATE, INST_ERROR, INST_CORRELATION, INST_LABELS, INST_PRIORITY,
	INST_STARTED_BY, INST_STARTED_AT, INST_START_AT, INST_DEADLINE,
	INST_ENDED_AT, INST_ORIGIN, INST_PARENT, INST_PARENT_STEP, INST_DEPTH,
	INST_COPY_OF, INST_PROTOCOL, INST_COLUMNS
};

/* ---------------------------------------------------------------- writing */

static inline Datum
text_or_null(const char *s, bool *isnull)
{
	*isnull = (s == NULL || s[0] == '\0');
	return *isnull ? (Datum) 0 : CStringGetTextDatum(s);
}

/*
 * Ids are UUIDv7: the first 48 bits are milliseconds of Unix time, and a
 * partition saga.log_YYYYMMDD holds one day of them.
 */
static Oid
partition_of(const pg_uuid_t *id)
{
	static Oid	cached = InvalidOid;
	static int64 cached_day = -1;
	int64		ms = 0;
	int64		day;
	int			year,
				month,
				mday;
	char		name[NAMEDATALEN];
	Oid			schema = get_namespace_oid("saga", false);
	Oid			relid;

	for (int i = 0; i < 6; i++)
		ms = (ms << 8) | id->data[i];
	day = ms / INT64CONST(86400000);
	if (day == cached_day && OidIsValid(cached) && get_rel_name(cached) != NULL)
		return cached;
	if (day >= 0 && day < 2900000)
	{
		j2date((int) day + UNIX_EPOCH_JDATE, &year, &month, &mday);
		snprintf(name, sizeof(name), "log_%04d%02d%02d", year, month, mday);
		relid = get_relname_relid(name, schema);
		if (OidIsValid(relid) && get_rel_relispartition(relid))
		{
			cached = relid;
			cached_day = day;
			return relid;
		}
	}
	return get_relname_relid("log_default", schema);
}

/* Kinds of which a value of 0 says something to a reader. */
static bool
has_value(uint8 kind)
{
	return kind == SAGA_RECORD_CHOSEN || kind == SAGA_RECORD_EXPANDED ||
		kind == SAGA_RECORD_ITERATION || kind == SAGA_RECORD_SIGNAL ||
		kind == SAGA_RECORD_BREAKPOINT;
}

static void
fill_log_row(const SagaLogEntry *entry, Datum *v, bool *n)
{
	const SagaRecord *r = &entry->record;
	const SagaPayload *p = &entry->payload;
	bool		has_step = r->node != SAGA_NO_NODE;
	bool		answered = r->kind == SAGA_RECORD_FAILED || r->kind == SAGA_RECORD_HOOK;

	memset(n, true, sizeof(bool) * LOG_COLUMNS);
	v[LOG_SAGA] = UUIDPGetDatum(&entry->saga_id);
	v[LOG_SEQ] = Int32GetDatum(r->seq);
	v[LOG_AT] = TimestampTzGetDatum(entry->at);
	v[LOG_KIND] = CStringGetTextDatum(saga_record_name(r->kind));
	n[LOG_SAGA] = n[LOG_SEQ] = n[LOG_AT] = n[LOG_KIND] = false;
	if (has_step)
	{
		v[LOG_STEP] = text_or_null(entry->step, &n[LOG_STEP]);
		v[LOG_OPERATION] = CStringGetTextDatum(saga_op_name(r->op));
		n[LOG_OPERATION] = false;
	}
	if (r->attempt != 0)
	{
		v[LOG_ATTEMPT] = Int32GetDatum(r->attempt);
		n[LOG_ATTEMPT] = false;
	}
	if (answered)
	{
		v[LOG_OUTCOME] = CStringGetTextDatum(saga_answer_name(r->answer));
		v[LOG_MAYBE] = BoolGetDatum(r->maybe);
		n[LOG_OUTCOME] = n[LOG_MAYBE] = false;
	}
	if (r->kind == SAGA_RECORD_ENDED)
	{
		v[LOG_STATE] = CStringGetTextDatum(saga_state_name(r->state));
		n[LOG_STATE] = false;
	}
	if (r->cause != SAGA_CAUSE_NONE)
	{
		v[LOG_CAUSE] = CStringGetTextDatum(saga_cause_name(r->cause));
		n[LOG_CAUSE] = false;
	}
	if (r->reason != SAGA_STUCK_NONE)
	{
		v[LOG_REASON] = CStringGetTextDatum(saga_stuck_reason_name(r->reason));
		n[LOG_REASON] = false;
	}
	if (r->due != 0)
	{
		/* NEVER is infinity */
		v[LOG_DUE] = TimestampTzGetDatum(r->due);
		n[LOG_DUE] = false;
	}
	v[LOG_SQLSTATE] = text_or_null(p->sqlstate, &n[LOG_SQLSTATE]);
	v[LOG_MESSAGE] = text_or_null(p->message, &n[LOG_MESSAGE]);
	if (p->result)
	{
		v[LOG_RESULT] = JsonbPGetDatum(p->result);
		n[LOG_RESULT] = false;
	}
	v[LOG_ACTOR] = text_or_null(p->actor, &n[LOG_ACTOR]);
	v[LOG_NOTE] = text_or_null(p->note, &n[LOG_NOTE]);
	if (r->value != 0 || has_value(r->kind))
	{
		v[LOG_VALUE] = Int64GetDatum(r->value);
		n[LOG_VALUE] = false;
	}
}

static void
write_entries(const SagaTurn *turn)
{
	SagaTable  *open[8];
	Oid			oids[8];
	int			nopen = 0;
	Datum		values[LOG_COLUMNS];
	bool		nulls[LOG_COLUMNS];

	for (int i = 0; i < turn->nentries; i++)
	{
		Oid			leaf = partition_of(&turn->entries[i].saga_id);
		int			k = 0;

		while (k < nopen && oids[k] != leaf)
			k++;
		if (k == nopen)
		{
			if (nopen == (int) lengthof(open))
				saga_table_close(open[k = --nopen]);
			open[k] = saga_table_open_oid(leaf, RowExclusiveLock);
			oids[k] = leaf;
			nopen++;
		}
		fill_log_row(&turn->entries[i], values, nulls);
		saga_table_insert(open[k], values, nulls);
	}
	while (nopen > 0)
		saga_table_close(open[--nopen]);
}

static void
write_changes(const SagaTurn *turn)
{
	SagaTable  *table;

	if (turn->nchanges == 0)
		return;
	table = saga_table_open("instance", RowExclusiveLock);
	for (int i = 0; i < turn->nchanges; i++)
	{
		const SagaInstanceChange *c = &turn->changes[i];
		Datum		key = UUIDPGetDatum(&c->id);
		Datum		v[INST_COLUMNS];
		bool		n[INST_COLUMNS];
		bool		r[INST_COLUMNS] = {0};

		if (c->ended_elsewhere)
			continue;
		memset(n, false, sizeof(n));
		v[INST_STATE] = CStringGetTextDatum(saga_state_name(c->state));
		v[INST_DIRECTION] = CStringGetTextDatum(c->direction == SAGA_FORWARD ? "forward" : "undo");
		r[INST_STATE] = r[INST_DIRECTION] = true;
		r[INST_CAUSE] = true;
		v[INST_CAUSE] = text_or_null(c->cause == SAGA_CAUSE_NONE ? NULL :
									 saga_cause_name(c->cause), &n[INST_CAUSE]);
		v[INST_FAILED_STEP] = text_or_null(c->failed_step, &n[INST_FAILED_STEP]);
		v[INST_SQLSTATE] = text_or_null(c->sqlstate, &n[INST_SQLSTATE]);
		v[INST_ERROR] = text_or_null(c->error, &n[INST_ERROR]);
		r[INST_FAILED_STEP] = r[INST_SQLSTATE] = r[INST_ERROR] = true;
		if (c->ended_at != 0)
		{
			v[INST_ENDED_AT] = TimestampTzGetDatum(c->ended_at);
			r[INST_ENDED_AT] = true;
		}
		else if (c->reopened)
			n[INST_ENDED_AT] = r[INST_ENDED_AT] = true;
		if (c->has_deadline)
		{
			v[INST_DEADLINE] = TimestampTzGetDatum(c->deadline);
			n[INST_DEADLINE] = c->deadline == DT_NOEND;
			r[INST_DEADLINE] = true;
		}
		if (c->definition_id != 0)
		{
			v[INST_DEFINITION] = Int64GetDatum(c->definition_id);
			r[INST_DEFINITION] = true;
		}
		if (!saga_table_update(table, &key, v, n, r))
			ereport(WARNING,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("the row of saga %s is missing",
							DatumGetCString(DirectFunctionCall1(uuid_out, key)))));
	}
	saga_table_close(table);
}

static void
delete_consumed(const SagaTurn *turn)
{
	SagaTable  *table;

	if (turn->noutcomes > 0)
	{
		table = saga_table_open("local_outcome", RowExclusiveLock);
		for (int i = 0; i < turn->noutcomes; i++)
		{
			Datum		key[3];

			key[0] = UUIDPGetDatum(&turn->outcomes[i].saga_id);
			key[1] = Int32GetDatum(turn->outcomes[i].node);
			key[2] = CharGetDatum(turn->outcomes[i].op);
			(void) saga_table_delete(table, key);
		}
		saga_table_close(table);
	}
	if (turn->ninbox > 0)
	{
		table = saga_table_open("inbox", RowExclusiveLock);
		for (int i = 0; i < turn->ninbox; i++)
		{
			Datum		key = Int64GetDatum(turn->inbox[i]);

			(void) saga_table_delete(table, &key);
		}
		saga_table_close(table);
	}
}

/* Insert, or replace what stands there. */
static void
upsert(SagaTable *table, const Datum *key, const Datum *values,
	   const bool *nulls, int ncolumns)
{
	bool		replace[SAGA_MAX_COLUMNS];

	memset(replace, true, sizeof(bool) * ncolumns);
	if (!saga_table_update(table, key, values, nulls, replace))
	{
		saga_table_insert(table, values, nulls);
		saga_table_flush(table);
	}
}

typedef struct LastEntry
{
	pg_uuid_t	saga_id;
	int			last;
} LastEntry;

/*
 * A saga may have left memory and come back within one turn: of its entries,
 * which begin with its id, only the last one counts.
 */
static HTAB *
find_last(const void *entries, int n, size_t size)
{
	HASHCTL		ctl;
	HTAB	   *last;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(pg_uuid_t);
	ctl.entrysize = sizeof(LastEntry);
	ctl.hcxt = CurrentMemoryContext;
	last = hash_create("saga last entries", n, &ctl,
					   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	for (int i = 0; i < n; i++)
	{
		LastEntry  *e = hash_search(last, (const char *) entries + i * size,
									HASH_ENTER, NULL);

		e->last = i;
	}
	return last;
}

static bool
is_last(HTAB *last, const pg_uuid_t *saga_id, int i)
{
	const LastEntry *e = hash_search(last, saga_id, HASH_FIND, NULL);

	return e->last == i;
}

static void
write_waiting(const SagaTurn *turn)
{
	SagaTable  *table;
	HTAB	   *last;

	if (turn->nstuck > 0)
	{
		table = saga_table_open("stuck_saga", RowExclusiveLock);
		last = find_last(turn->stuck, turn->nstuck, sizeof(SagaStuckChange));
		for (int i = 0; i < turn->nstuck; i++)
		{
			const SagaStuckChange *s = &turn->stuck[i];
			Datum		key = UUIDPGetDatum(&s->saga_id);
			Datum		v[7];
			bool		n[7] = {0};

			if (!is_last(last, &s->saga_id, i))
				continue;
			if (!s->stuck)
			{
				(void) saga_table_delete(table, &key);
				continue;
			}
			v[0] = key;
			v[1] = text_or_null(s->step, &n[1]);
			v[2] = text_or_null(s->operation, &n[2]);
			v[3] = CStringGetTextDatum(s->reason);
			v[4] = text_or_null(s->sqlstate, &n[4]);
			v[5] = text_or_null(s->message, &n[5]);
			v[6] = TimestampTzGetDatum(s->since);
			upsert(table, &key, v, n, 7);
		}
		saga_table_close(table);
	}
	if (turn->nwakeups > 0)
	{
		table = saga_table_open("wakeup", RowExclusiveLock);
		last = find_last(turn->wakeups, turn->nwakeups, sizeof(SagaWakeup));
		for (int i = 0; i < turn->nwakeups; i++)
		{
			const SagaWakeup *w = &turn->wakeups[i];
			Datum		key = UUIDPGetDatum(&w->saga_id);
			Datum		v[3];
			bool		n[3] = {0};

			if (!is_last(last, &w->saga_id, i))
				continue;
			if (w->due == 0)
			{
				(void) saga_table_delete(table, &key);
				continue;
			}
			v[0] = key;
			v[1] = Int16GetDatum(saga_bucket(&w->saga_id));
			v[2] = TimestampTzGetDatum(w->due);
			upsert(table, &key, v, n, 3);
		}
		saga_table_close(table);
	}
}

static void
run_write(SPIPlanPtr *plan, const char *sql, int nargs, Oid *types,
		  Datum *values, const char *nulls)
{
	if (*plan == NULL)
	{
		SPIPlanPtr	fresh = SPI_prepare(sql, nargs, types);

		if (fresh == NULL || SPI_keepplan(fresh) != 0)
			elog(ERROR, "could not prepare: %s", sql);
		*plan = fresh;
	}
	if (SPI_execute_plan(*plan, values, nulls, false, 0) < 0)
		elog(ERROR, "could not run: %s", sql);
}

/*
 * Offers to saga.take().  One that a session has locked is left: taking it has
 * no effect any more, and saga.upkeep() removes it.
 */
static void
write_queued(const SagaTurn *turn)
{
	static SPIPlanPtr remove = NULL;
	static SPIPlanPtr forget = NULL;
	static SPIPlanPtr insert = NULL;
	Oid			types[7] = {UUIDOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, INT4OID, JSONBOID};

	for (int i = 0; i < turn->nqueued; i++)
	{
		const SagaQueued *q = &turn->queued[i];
		Datum		v[7];
		char		nulls[8] = "       ";

		v[0] = UUIDPGetDatum(&q->saga_id);
		nulls[1] = q->step ? ' ' : 'n';
		v[1] = q->step ? CStringGetTextDatum(q->step) : (Datum) 0;
		v[2] = CStringGetTextDatum(saga_op_name(q->op));
		run_write(&remove, "DELETE FROM saga.queued_step WHERE id = ANY (ARRAY("
				  "SELECT id FROM saga.queued_step WHERE saga_id = $1"
				  " AND ($2 IS NULL OR (step = $2 AND operation = $3)) FOR UPDATE SKIP LOCKED))",
				  3, types, v, nulls);
		if (q->step == NULL)
			run_write(&forget, "WITH progress AS (DELETE FROM saga.step_progress p USING ("
					  "  SELECT saga_id, step, operation FROM saga.step_progress"
					  "  WHERE saga_id = $1 FOR UPDATE SKIP LOCKED) o"
					  " WHERE p.saga_id = o.saga_id AND p.step = o.step AND p.operation = o.operation)"
					  " DELETE FROM saga.local_outcome WHERE saga_id = $1 AND accepted",
					  1, types, v, NULL);
		if (q->removed)
			continue;
		v[3] = CStringGetTextDatum(q->queue);
		v[4] = CStringGetTextDatum(q->definition);
		v[5] = Int32GetDatum(q->priority);
		nulls[6] = q->input ? ' ' : 'n';
		v[6] = q->input ? JsonbPGetDatum(q->input) : (Datum) 0;
		run_write(&insert, "INSERT INTO saga.queued_step"
				  " (saga_id, step, operation, queue, definition, priority, input)"
				  " VALUES ($1, $2, $3, $4, $5, $6, $7)", 7, types, v, nulls);
	}
}

/* What the sagas that end here, or go back, hold. */
static void
release_held(const SagaTurn *turn)
{
	SagaIsolationEnd *ends = NULL;
	int			n = 0;

	for (int i = 0; i < turn->nchanges; i++)
	{
		const SagaInstanceChange *c = &turn->changes[i];

		if (!c->holds || c->ended_elsewhere || c->ended_at == 0)
			continue;
		if (ends == NULL)
			ends = palloc(sizeof(SagaIsolationEnd) * turn->nchanges);
		ends[n].saga_id = c->id;
		ends[n++].keeps = c->state != SAGA_COMPENSATED;
	}
	saga_isolation_end(ends, n);
	for (int i = 0; i < turn->nreplaced; i++)
		saga_isolation_undone(&turn->replaced[i].saga_id, turn->replaced[i].node);
}

/* Whoever owns the addressee hears of it when this commits. */
static void
write_messages(const SagaTurn *turn)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[5] = {UUIDOID, INT2OID, TEXTOID, TEXTOID, TEXTOID};

	if (turn->nmessages > 0 && plan == NULL)
	{
		SPIPlanPtr	fresh = SPI_prepare("INSERT INTO saga.inbox (saga_id, bucket, verb, step, note, actor)"
										" VALUES ($1, $2, $3, $4, $5, 'saga') RETURNING id", 5, types);

		if (fresh == NULL || SPI_keepplan(fresh) != 0)
			elog(ERROR, "could not prepare the messages of sagas");
		plan = fresh;
	}
	for (int i = 0; i < turn->nmessages; i++)
	{
		const SagaMessage *m = &turn->messages[i];
		Datum		v[5];
		char		nulls[6] = "     ";
		bool		isnull;

		v[0] = UUIDPGetDatum(&m->to);
		v[1] = Int16GetDatum(saga_bucket(&m->to));
		v[2] = CStringGetTextDatum(m->verb);
		nulls[3] = m->step ? ' ' : 'n';
		v[3] = m->step ? CStringGetTextDatum(m->step) : (Datum) 0;
		nulls[4] = m->note ? ' ' : 'n';
		v[4] = m->note ? CStringGetTextDatum(m->note) : (Datum) 0;
		if (SPI_execute_plan(plan, v, nulls, false, 0) != SPI_OK_INSERT_RETURNING)
			elog(ERROR, "could not write saga.inbox");
		saga_wake_at_commit(&m->to, DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0],
																 SPI_tuptable->tupdesc, 1, &isnull)), 0);
		SPI_freetuptable(SPI_tuptable);
	}
}

void
saga_log_write(const SagaTurn *turn)
{
	release_held(turn);
	write_entries(turn);
	write_changes(turn);
	delete_consumed(turn);
	write_waiting(turn);
	write_queued(turn);
	write_messages(turn);
}

/* ------------------------------------------------------------ single rows */

static char *
text_of(Datum value, bool isnull)
{
	return isnull ? NULL : TextDatumGetCString(value);
}

static bool
has_member(Jsonb *object, const char *name)
{
	JsonbValue	value;

	return JB_ROOT_IS_OBJECT(object) &&
		getKeyJsonValueFromContainer(&object->root, name, strlen(name), &value) != NULL;
}

bool
saga_log_read_instance(const pg_uuid_t *id, SagaInstanceRow *row)
{
	SagaTable  *table = saga_table_open("instance", AccessShareLock);
	Datum		key = UUIDPGetDatum(id);
	Datum		v[INST_COLUMNS];
	bool		n[INST_COLUMNS];
	bool		found = saga_table_fetch(table, &key, v, n);

	if (found)
	{
		row->id = *id;
		row->definition_id = DatumGetInt64(v[INST_DEFINITION]);
		row->state = saga_state_from_name(TextDatumGetCString(v[INST_STATE]));
		row->key = text_of(v[INST_KEY], n[INST_KEY]);
		row->input = DatumGetJsonbPCopy(v[INST_INPUT]);
		row->correlation = text_of(v[INST_CORRELATION], n[INST_CORRELATION]);
		row->started_by = DatumGetObjectId(v[INST_STARTED_BY]);
		row->started_at = DatumGetTimestampTz(v[INST_STARTED_AT]);
		row->start_at = n[INST_START_AT] ? 0 : DatumGetTimestampTz(v[INST_START_AT]);
		row->deadline = n[INST_DEADLINE] ? DT_NOEND : DatumGetTimestampTz(v[INST_DEADLINE]);
		row->ended = !n[INST_ENDED_AT];
		row->origin = DatumGetInt32(v[INST_ORIGIN]);
		row->has_parent = !n[INST_PARENT] && !n[INST_PARENT_STEP];
		if (row->has_parent)
		{
			row->parent_id = *DatumGetUUIDP(v[INST_PARENT]);
			row->parent_step = TextDatumGetCString(v[INST_PARENT_STEP]);
		}
		row->scheduled = !n[INST_LABELS] &&
			has_member(DatumGetJsonbP(v[INST_LABELS]), "schedule");
		row->two_phase = strcmp(TextDatumGetCString(v[INST_PROTOCOL]), "two_phase") == 0;
	}
	saga_table_close(table);
	return found;
}

bool
saga_log_read_outcome(const pg_uuid_t *id, int32 step, char op, Jsonb **result)
{
	SagaTable  *table = saga_table_open("local_outcome", AccessShareLock);
	Datum		key[3];
	Datum		v[SAGA_MAX_COLUMNS];
	bool		n[SAGA_MAX_COLUMNS];
	bool		found;

	key[0] = UUIDPGetDatum(id);
	key[1] = Int32GetDatum(step);
	key[2] = CharGetDatum(op);
	found = saga_table_fetch(table, key, v, n);
	*result = found && !n[5] ? DatumGetJsonbPCopy(v[5]) : NULL;
	saga_table_close(table);
	return found;
}

bool
saga_log_read_inbox(int64 id, SagaInboxRow *row)
{
	SagaTable  *table = saga_table_open("inbox", AccessShareLock);
	Datum		key = Int64GetDatum(id);
	Datum		v[SAGA_MAX_COLUMNS];
	bool		n[SAGA_MAX_COLUMNS];
	bool		found = saga_table_fetch(table, &key, v, n);

	if (found)
	{
		row->id = id;
		row->saga_id = *DatumGetUUIDP(v[1]);
		row->verb = TextDatumGetCString(v[3]);
		row->step = text_of(v[4], n[4]);
		row->result = n[5] ? NULL : DatumGetJsonbPCopy(v[5]);
		row->force = DatumGetBool(v[6]);
		row->actor = TextDatumGetCString(v[7]);
		row->note = text_of(v[8], n[8]);
		row->operation = text_of(v[10], n[10]);
		row->kind = text_of(v[11], n[11]);
		row->has_value = !n[12];
		row->value = n[12] ? 0 : DatumGetInt64(v[12]);
	}
	saga_table_close(table);
	return found;
}
