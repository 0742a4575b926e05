/*
 * orphans.c
 *		Prepared transactions that no live saga will end: found at the
 *		participants and ended.
 *
 * Called by coordinator.c, of the first coordinator only.  There are such
 * orphans after a participant failed over or was restored (it has again what
 * was committed), after a saga was terminated, and after this database lost
 * what it had not flushed to a standby.
 *
 * Of one server as one user: list what stands there; read which of it belongs
 * to live sagas (left to them) and which was decided; list again, and end what
 * stood in both.  A saga's row is committed before its first PREPARE is sent,
 * so one that is listed and not found after that is truly unknown; and what
 * its saga has just ended itself is not in the second list.  Presumed abort:
 * whatever was not decided to be committed is rolled back.
 *
 * Only gids that begin with this server's and this database's mark, in the
 * same database, of the same user, are ever looked at.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

#include "compat.h"
#include "coordinator.h"
#include "two_phase.h"

/* Tags of requests that are nobody else's. */
#define ORPHAN_TAG		(UINT64CONST(1) << 63)

#define ASK_TIMEOUT		30000	/* ms */
#define MAX_GID			200		/* GIDSIZE, with the final zero */

/* What has been seen at a server, and is to be seen again. */
typedef struct Orphan
{
	char		gid[MAX_GID];
	bool		commit;
} Orphan;

/* One request that is out. */
typedef struct Asked
{
	uint64		tag;			/* hash key */
	Oid			owner;
	char		server[NAMEDATALEN];
	SagaRequestMode mode;
	char		gid[MAX_GID];	/* COMMIT, ROLLBACK */
	int			nseen;			/* LIST, the second time; -1: the first */
	Orphan	   *seen;
} Asked;

static HTAB *asked = NULL;
static uint64 next_tag = ORPHAN_TAG;
static bool looked = false;

/* ---- requests ---- */

static Asked *
ask(Oid owner, const char *server_name, SagaRequestMode mode, const char *gid)
{
	char	   *problem = NULL;
	int			sqlstate;
	SagaServer *server = saga_server_lookup(server_name, owner, &problem, &sqlstate);
	SagaRequest request;
	Asked	   *entry;
	uint64		tag = ++next_tag;
	bool		found;

	if (server == NULL)
		return NULL;			/* whoever uses it is told why */
	entry = hash_search(asked, &tag, HASH_ENTER, &found);
	memset((char *) entry + sizeof(entry->tag), 0, sizeof(*entry) - sizeof(entry->tag));
	entry->owner = owner;
	strlcpy(entry->server, server_name, sizeof(entry->server));
	entry->mode = mode;
	entry->nseen = -1;
	if (mode != SAGA_REQUEST_LIST_PREPARED)
		strlcpy(entry->gid, gid, sizeof(entry->gid));
	memset(&request, 0, sizeof(request));
	request.tag = tag;
	request.mode = mode;
	request.server = server;
	request.saga_name = "recovery";
	request.gid = gid;
	request.timeout_ms = ASK_TIMEOUT;
	saga_connector_submit(&request);
	return entry;
}

bool
saga_orphans_asked(uint64 tag)
{
	return asked != NULL && hash_search(asked, &tag, HASH_FIND, NULL) != NULL;
}

/* Is a round of questions to this server still on its way? */
static bool
is_being_asked(Oid owner, const char *server)
{
	HASH_SEQ_STATUS status;
	Asked	   *entry;

	hash_seq_init(&status, asked);
	while ((entry = hash_seq_search(&status)) != NULL)
		if (entry->owner == owner && strcmp(entry->server, server) == 0)
		{
			hash_seq_term(&status);
			return true;
		}
	return false;
}

/* ---- a round ---- */

static void
init(void)
{
	HASHCTL		ctl;

	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(Asked);
	asked = hash_create("saga orphans", 32, &ctl, HASH_ELEM | HASH_BLOBS);
}

void
saga_orphans_look(bool time_to)
{
	uint64		n;
	SPITupleTable *table;

	if (looked && !time_to)
		return;
	looked = true;
	if (asked == NULL)
		init();
	if (SPI_execute("SELECT DISTINCT d.owner::pg_catalog.oid, b.server"
					" FROM saga.definition d, saga.two_phase_branches_(d.body) b"
					" WHERE d.body->>'protocol' = 'two_phase' OR d.body->'protocols' ? 'two_phase'",
					true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read the servers of two-phase commit");
	table = SPI_tuptable;
	n = SPI_processed;
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		Oid			owner = DatumGetObjectId(SPI_getbinval(table->vals[i], table->tupdesc,
														   1, &isnull));
		char	   *server = SPI_getvalue(table->vals[i], table->tupdesc, 2);

		if (!is_being_asked(owner, server))
			(void) ask(owner, server, SAGA_REQUEST_LIST_PREPARED,
					   saga_prepared_prefix());
	}
	SPI_freetuptable(table);
}

/* What is to become of a prepared transaction: false, its saga will see to it. */
static bool
judge(const char *gid, bool *commit)
{
	Oid			types[1] = {UUIDOID};
	Datum		values[1];
	pg_uuid_t	saga_id;
	bool		isnull;
	bool		live;

	*commit = false;
	if (!saga_prepared_saga(gid, &saga_id))
		return true;			/* it bears our mark, and no saga's */
	values[0] = UUIDPGetDatum(&saga_id);
	if (SPI_execute_with_args("SELECT EXISTS (SELECT FROM saga.instance WHERE id = $1 AND ended_at IS NULL),"
							  " EXISTS (SELECT FROM saga.log_record WHERE saga_id = $1 AND step = '" SAGA_DECIDE_STEP "'"
							  "         AND kind = 'done' AND operation = 'action')"
							  " OR EXISTS (SELECT FROM saga.local_outcome WHERE saga_id = $1 AND operation = 'a')",
							  1, types, values, NULL, true, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "could not read what was decided");
	live = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	*commit = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
	SPI_freetuptable(SPI_tuptable);
	return !live;
}

/* The i-th gid of an answer, and its age in seconds; false if it is none. */
static bool
listed(JsonbContainer *list, uint32 i, char *gid, double *age)
{
	JsonbValue *pair = getIthJsonbValueFromContainer(list, i);
	JsonbValue *text;
	JsonbValue *seconds;

	if (pair == NULL || pair->type != jbvBinary ||
		!JsonContainerIsArray(pair->val.binary.data))
		return false;
	text = getIthJsonbValueFromContainer(pair->val.binary.data, 0);
	seconds = getIthJsonbValueFromContainer(pair->val.binary.data, 1);
	if (text == NULL || text->type != jbvString ||
		text->val.string.len >= MAX_GID ||
		seconds == NULL || seconds->type != jbvNumeric)
		return false;
	memcpy(gid, text->val.string.val, text->val.string.len);
	gid[text->val.string.len] = '\0';
	*age = DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow,
											  NumericGetDatum(seconds->val.numeric)));
	return true;
}

/* Keep those of it that need somebody: shown in saga.in_doubt from now on. */
static void
first_list(const Asked *entry, JsonbContainer *list)
{
	uint32		n = JsonContainerSize(list);
	Orphan	   *seen;
	int			nseen = 0;
	Asked	   *again;

	if (n == 0)
		return;
	seen = MemoryContextAllocZero(TopMemoryContext, n * sizeof(Orphan));
	for (uint32 i = 0; i < n; i++)
	{
		Orphan	   *orphan = &seen[nseen];
		double		age;

		if (listed(list, i, orphan->gid, &age) &&
			judge(orphan->gid, &orphan->commit))
			nseen++;
	}
	again = nseen == 0 ? NULL :
		ask(entry->owner, entry->server, SAGA_REQUEST_LIST_PREPARED,
			saga_prepared_prefix());
	if (again == NULL)
	{
		pfree(seen);
		return;
	}
	again->nseen = nseen;
	again->seen = seen;
}

static void
note_orphan(const Asked *entry, const char *gid, bool commit, double age)
{
	Oid			types[4] = {TEXTOID, TEXTOID, TEXTOID, FLOAT8OID};
	Datum		values[4];

	values[0] = CStringGetTextDatum(gid);
	values[1] = CStringGetTextDatum(entry->server);
	values[2] = CStringGetTextDatum(commit ? "commit" : "rollback");
	values[3] = Float8GetDatum(age);
	if (SPI_execute_with_args("INSERT INTO saga.orphan (gid, server, decision, prepared_at)"
							  " VALUES ($1, $2, $3, pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $4))"
							  " ON CONFLICT (gid, server) DO NOTHING",
							  4, types, values, NULL, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not note a prepared transaction");
}

static void
second_list(const Asked *entry, JsonbContainer *list)
{
	for (uint32 i = 0; i < JsonContainerSize(list); i++)
	{
		char		gid[MAX_GID];
		double		age;

		if (!listed(list, i, gid, &age))
			continue;
		for (int k = 0; k < entry->nseen; k++)
		{
			const Orphan *orphan = &entry->seen[k];

			if (strcmp(orphan->gid, gid) != 0)
				continue;
			note_orphan(entry, gid, orphan->commit, age);
			(void) ask(entry->owner, entry->server, orphan->commit ?
					   SAGA_REQUEST_COMMIT_PREPARED :
					   SAGA_REQUEST_ROLLBACK_PREPARED, gid);
		}
	}
}

/* Those that did not stand any more are no longer in doubt. */
static void
forget_orphans(const Asked *entry, Jsonb *list)
{
	Oid			types[2] = {TEXTOID, JSONBOID};
	Datum		values[2];

	values[0] = CStringGetTextDatum(entry->server);
	values[1] = JsonbPGetDatum(list);
	if (SPI_execute_with_args("DELETE FROM saga.orphan o WHERE o.server = $1"
							  " AND NOT EXISTS (SELECT FROM pg_catalog.jsonb_array_elements($2) e WHERE e->>0 = o.gid)",
							  2, types, values, NULL, false, 0) != SPI_OK_DELETE)
		elog(ERROR, "could not forget prepared transactions");
}

static void
take_list(const Asked *entry, const SagaAnswer *answer)
{
	char	   *problem;
	Jsonb	   *list = saga_result_from_text(NULL, answer->result, &problem);

	if (list == NULL || !JB_ROOT_IS_ARRAY(list) || JB_ROOT_IS_SCALAR(list))
		return;
	if (entry->nseen < 0)
	{
		forget_orphans(entry, list);
		first_list(entry, &list->root);
	}
	else
		second_list(entry, &list->root);
}

/* ---- answers ---- */

static void
take_end(const Asked *entry, const SagaAnswer *answer)
{
	bool		commit = entry->mode == SAGA_REQUEST_COMMIT_PREPARED;
	Oid			types[3] = {TEXTOID, TEXTOID, TEXTOID};
	Datum		values[3];

	values[0] = CStringGetTextDatum(entry->gid);
	values[1] = CStringGetTextDatum(entry->server);
	if (answer->kind == SAGA_ANSWER_DONE)
	{
		ereport(LOG,
				(commit ?
				 errmsg("committed orphaned prepared transaction \"%s\" at server \"%s\"",
						entry->gid, entry->server) :
				 errmsg("rolled back orphaned prepared transaction \"%s\" at server \"%s\"",
						entry->gid, entry->server),
				 errdetail("No live saga would have ended it.")));
		SPI_execute_with_args("DELETE FROM saga.orphan WHERE gid = $1 AND server = $2",
							  2, types, values, NULL, false, 0);
		return;
	}
	values[2] = CStringGetTextDatum(answer->message ? answer->message : "no answer");
	SPI_execute_with_args("UPDATE saga.orphan SET error = $3 WHERE gid = $1 AND server = $2"
						  " AND error IS DISTINCT FROM $3",
						  3, types, values, NULL, false, 0);
}

void
saga_orphans_answer(const SagaAnswer *answer)
{
	Asked		entry = *(Asked *) hash_search(asked, &answer->tag, HASH_FIND, NULL);

	hash_search(asked, &answer->tag, HASH_REMOVE, NULL);
	if (entry.mode != SAGA_REQUEST_LIST_PREPARED)
		take_end(&entry, answer);
	else if (answer->kind == SAGA_ANSWER_DONE)
		take_list(&entry, answer);
	if (entry.seen)
		pfree(entry.seen);
}
