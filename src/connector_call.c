/*
 * connector_call.c
 *		One call over a connection to a PostgreSQL participant: the messages of
 *		its transaction, and what their results mean for the answer.
 *
 * Called by connector_libpq.c, whose links it fills and reads.  Holds the rule
 * on which exactly-once rests: a call is done only if run() answered and the
 * tag of the COMMIT is COMMIT; it is known not to have happened when an error
 * came before the COMMIT could be processed; all else is unknown.  Touches no
 * table and decides nothing about sagas.
 */
#include "postgres.h"

#include <ctype.h>

#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "connector_libpq.h"

#define PURGE_ROWS	10000		/* of saga_participant.purge() */

static void send_run(SagaPqLink *link, SagaStatement *statement);

/* ---- statements ---- */

static void
statement_name(uint64 hash, char *out, size_t size)
{
	snprintf(out, size, "saga_" UINT64_FORMAT, hash);
}

static const char *
skip_space(const char *p)
{
	for (;;)
	{
		while (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r' ||
			   *p == '\f' || *p == '(')
			p++;
		if (p[0] == '-' && p[1] == '-')
			p += strcspn(p, "\n");
		else if (p[0] == '/' && p[1] == '*')
		{
			const char *end = strstr(p + 2, "*/");

			if (end == NULL)
				return p;
			p = end + 2;
		}
		else
			return p;
	}
}

/* By its first word only: a guess that saves a round trip, no more. */
static bool
looks_modifying(const char *sql)
{
	static const char *const words[] = {"insert", "update", "delete", "merge",
	"with", NULL};
	const char *p = skip_space(sql);

	for (int i = 0; words[i]; i++)
	{
		if (pg_strncasecmp(p, words[i], strlen(words[i])) == 0)
			return true;
	}
	return false;
}

static bool
contains_returning(const char *sql)
{
	for (; *sql; sql++)
	{
		if (pg_strncasecmp(sql, "returning", 9) == 0)
			return true;
	}
	return false;
}

/*
 * Commands that would end the transaction or drop what the session needs.  At
 * top level only, for functions and procedures cannot do it.
 */
bool
saga_statement_is_refused(const char *sql)
{
	static const char *const words[] = {"begin", "start", "commit", "end",
		"rollback", "abort", "savepoint", "release", "prepare", "deallocate",
	"discard", NULL};
	const char *p = skip_space(sql);

	for (int i = 0; words[i]; i++)
	{
		size_t		len = strlen(words[i]);

		if (pg_strncasecmp(p, words[i], len) == 0 &&
			!isalnum((unsigned char) p[len]) && p[len] != '_')
			return true;
	}
	return false;
}

/*
 * EXECUTE within a function does not tell how many rows a statement touched,
 * so one without a result is given one: a row for each.
 */
static char *
with_returning(const char *sql)
{
	char	   *copy = pstrdup(sql);
	int			len = strlen(copy);

	while (len > 0 && strchr("; \t\n\r\f", copy[len - 1]))
		copy[--len] = '\0';
	return psprintf("%s\nRETURNING 1", copy);
}

static SagaStatement *
find_statement(SagaPqLink *link, uint64 hash)
{
	for (int i = 0; i < link->nstatements; i++)
	{
		if (link->statements[i].hash == hash)
		{
			link->statements[i].last_used = ++link->use_counter;
			return &link->statements[i];
		}
	}
	return NULL;
}

static void
remove_statement(SagaPqLink *link, SagaStatement *statement)
{
	*statement = link->statements[--link->nstatements];
}

/* Make room for one more: the one unused for longest goes. */
static void
evict_statement(SagaPqLink *link)
{
	SagaStatement *oldest = &link->statements[0];
	char		name[40];
	char		sql[64];

	if (link->nstatements < SAGA_LINK_STATEMENTS)
		return;
	for (int i = 1; i < link->nstatements; i++)
	{
		if (link->statements[i].last_used < oldest->last_used)
			oldest = &link->statements[i];
	}
	if (link->prepared)
	{
		statement_name(oldest->hash, name, sizeof(name));
		snprintf(sql, sizeof(sql), "DEALLOCATE %s", name);
		saga_link_query(link, SAGA_ITEM_OTHER, sql, 0, NULL);
		saga_link_sync(link);
	}
	remove_statement(link, oldest);
}

/* After something in the session dropped statements: all anew. */
void
saga_call_restore_statements(SagaPqLink *link)
{
	if (!link->statements_lost)
		return;
	link->statements_lost = false;
	link->nstatements = 0;
	if (!link->prepared)
		return;
	saga_link_query(link, SAGA_ITEM_OTHER, "DEALLOCATE ALL", 0, NULL);
	saga_link_parse_own(link);
	saga_link_sync(link);
}

/* The statement that is sent, or prepared, now. */
static void
current_piece(const SagaPqLink *link, SagaPiece *piece)
{
	const SagaConnCall *call = link->link.call;
	const SagaRequest *request = &call->request;

	if (saga_branch_is(call))
	{
		saga_branch_piece(call, link->part, piece);
		return;
	}
	piece->step = request->step;
	piece->op = request->op == SAGA_OP_UNDO ? "u" : "a";
	piece->tmpl = request->tmpl;
	piece->values = request->values;
	piece->shape = request->shape;
	piece->expect_rows = request->expect_rows;
	piece->timeout_ms = request->timeout_ms;
	piece->max_result = saga_connector_max_result();
}

/* First use on this connection: prepare, and learn what it returns. */
static void
send_describe(SagaPqLink *link, const SagaTemplate *tmpl, bool counting)
{
	char		name[40] = "";
	const char *sql = counting ? with_returning(tmpl->sql) : tmpl->sql;

	memset(&link->link.call->answer, 0, sizeof(SagaAnswer));
	saga_link_begin_exchange(link, SAGA_LINK_DESCRIBING);
	saga_call_restore_statements(link);
	evict_statement(link);
	memset(&link->described, 0, sizeof(link->described));
	link->described.hash = tmpl->hash;
	link->described.counted = counting;
	link->described.modifies = looks_modifying(tmpl->sql);
	link->counting = counting;
	/* a pooler may give the next transaction to another session: no name */
	if (link->prepared)
		statement_name(tmpl->hash, name, sizeof(name));
	saga_link_parse(link, SAGA_ITEM_PARSE, name, sql, tmpl->nparams,
					saga_wire_types(tmpl));
	saga_link_describe(link, name);
	saga_link_sync(link);
	saga_link_flush(link);
}

/* ---- sending ---- */

/* It cannot be run: the call's answer. */
static SagaStatement *
refuse(SagaPqLink *link, const char *message, const char *detail,
	   const char *hint)
{
	saga_call_error(link->link.call, SAGA_ANSWER_BROKEN, "0A000", message,
					detail, hint);
	saga_link_call_done(link);
	return NULL;
}

SagaStatement *
saga_call_statement(SagaPqLink *link, const SagaPiece *piece)
{
	const char *sql = piece->tmpl->sql;
	SagaStatement *statement = NULL;

	if (saga_statement_is_refused(sql))
		return refuse(link, "commands that control transactions or sessions cannot be steps",
					  NULL, NULL);
	if (!link->prepared && pg_strncasecmp(skip_space(sql), "call", 4) == 0)
		return refuse(link, "CALL cannot be used with a server whose option prepared is false",
					  "SQL's PREPARE, which a pooler needs, does not take it.",
					  "Call a function with SELECT instead.");
	if (!link->statements_lost)
		statement = find_statement(link, piece->tmpl->hash);
	if (statement == NULL)
	{
		send_describe(link, piece->tmpl,
					  looks_modifying(sql) && !contains_returning(sql));
		return NULL;
	}
	if (piece->expect_rows >= 0 && statement->modifies && statement->nfields == 0)
		return refuse(link, "the rows of this statement cannot be counted at the participant",
					  "The step was defined with expect_rows.",
					  "Add a RETURNING clause, or put the statement into a function.");
	return statement;
}

/* Send it, or what must be prepared before. */
static void
send_piece(SagaPqLink *link)
{
	SagaPiece	piece;
	SagaStatement *statement;

	current_piece(link, &piece);
	statement = saga_call_statement(link, &piece);
	if (statement)
		send_run(link, statement);
}

void
saga_call_send(SagaPqLink *link)
{
	SagaConnCall *call = link->link.call;
	MemoryContext old = MemoryContextSwitchTo(call->context);

	if (saga_branch_is(call))
	{
		link->part = 0;
		saga_branch_send(link);
	}
	else if (call->request.mode == SAGA_REQUEST_CLAIM ||
			 call->request.mode == SAGA_REQUEST_PURGE)
		send_run(link, NULL);
	else
		send_piece(link);
	MemoryContextSwitchTo(old);
}

static const char *
shape_name(SagaResultShape shape, const SagaStatement *statement)
{
	if (shape == SAGA_RESULT_NONE || statement->nfields == 0 ||
		statement->is_void)
		return "none";
	if (statement->counted)
		return "count";
	switch (shape)
	{
		case SAGA_RESULT_ROWS:
			return "rows";
		case SAGA_RESULT_FIRST:
			return "first";
		default:
			return "one";
	}
}

/* Milliseconds the participant gives the statement. */
static int
statement_timeout(const SagaPqLink *link, int timeout_ms)
{
	int			own = link->statement_timeout_ms;

	return own > 0 ? Min(own, timeout_ms) : timeout_ms;
}

/* What the session settings of server.c are without a pooler. */
static void
send_pooled_settings(SagaPqLink *link, const char *timeout)
{
	const char *path = link->link.endpoint->server->search_path;
	const char *values[2] = {timeout, path};

	saga_link_query(link, SAGA_ITEM_OTHER, path ?
					"SELECT saga_participant.settings($1), pg_catalog.set_config('search_path', $2, true)" :
					"SELECT saga_participant.settings($1)",
					path ? 2 : 1, values);
}

void
saga_call_begin(SagaPqLink *link, int timeout_ms)
{
	int			ms = statement_timeout(link, timeout_ms);
	char		timeout[16];
	const char *values[1] = {timeout};

	snprintf(timeout, sizeof(timeout), "%d", ms);
	if (!link->prepared)
	{
		saga_link_query(link, SAGA_ITEM_OTHER,
						"BEGIN ISOLATION LEVEL READ COMMITTED", 0, NULL);
		send_pooled_settings(link, timeout);
		return;
	}
	saga_link_execute(link, SAGA_ITEM_OTHER, "saga_begin", 0, NULL);
	if (ms != link->session_timeout_ms)
		saga_link_execute(link, SAGA_ITEM_OTHER, "saga_set", 1, values);
}

/* Of the statements that follow: run() has set none for its transaction. */
void
saga_call_set_timeout(SagaPqLink *link, int timeout_ms)
{
	char		timeout[16];
	const char *values[1] = {timeout};

	snprintf(timeout, sizeof(timeout), "%d", statement_timeout(link, timeout_ms));
	if (link->prepared)
		saga_link_execute(link, SAGA_ITEM_OTHER, "saga_set", 1, values);
	else
		saga_link_query(link, SAGA_ITEM_OTHER,
						"SELECT pg_catalog.set_config('statement_timeout', $1, true)",
						1, values);
}

/* 'EXECUTE name(%L, ...)': the participant puts the values in, quoted. */
static char *
execute_format(const char *name, int nparams)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "EXECUTE %s", name);
	for (int i = 0; i < nparams; i++)
		appendStringInfoString(&buf, i == 0 ? "(%L" : ",%L");
	if (nparams > 0)
		appendStringInfoChar(&buf, ')');
	return buf.data;
}

static char *
prepare_text(const SagaTemplate *tmpl, const SagaStatement *statement)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "PREPARE saga_call");
	for (int i = 0; i < tmpl->nparams; i++)
		appendStringInfo(&buf, "%s%s", i == 0 ? "(" : ",",
						 saga_call_type_name(tmpl->params[i].bind_type));
	if (tmpl->nparams > 0)
		appendStringInfoChar(&buf, ')');
	appendStringInfo(&buf, " AS %s", statement->counted ?
					 with_returning(tmpl->sql) : tmpl->sql);
	return buf.data;
}

void
saga_call_run_piece(SagaPqLink *link, const SagaPiece *piece,
					const SagaStatement *statement)
{
	const SagaRequest *request = &link->link.call->request;
	bool		undo = request->mode == SAGA_REQUEST_UNDO;
	const char *values[11];
	int			n = 0;
	char		saga[40];
	char		not_after[64];
	char		expect[16];
	char		max[16];
	char		name[40] = "saga_call";

	saga_uuid_text(&request->saga_id, saga);
	saga_call_time_text(request->not_after, not_after, sizeof(not_after));
	snprintf(expect, sizeof(expect), "%d", piece->expect_rows);
	snprintf(max, sizeof(max), "%d", piece->max_result);
	if (link->prepared)
		statement_name(statement->hash, name, sizeof(name));
	values[n++] = saga;
	values[n++] = piece->step;
	if (!undo)
		values[n++] = piece->op;
	values[n++] = not_after;
	values[n++] = execute_format(name, piece->tmpl->nparams);
	values[n++] = saga_call_array_text(piece->tmpl->nparams, piece->values);
	values[n++] = shape_name(piece->shape, statement);
	values[n++] = statement->nfields == 1 ? statement->column : NULL;
	values[n++] = expect;
	values[n++] = max;
	values[n++] = link->prepared ? NULL : prepare_text(piece->tmpl, statement);
	if (link->prepared && !undo)
		saga_link_execute(link, SAGA_ITEM_RUN, "saga_run", n, values);
	else
		saga_link_query(link, SAGA_ITEM_RUN,
						psprintf(undo ?
								 "SELECT saga_participant.undo(%s, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10)" :
								 "SELECT saga_participant.run(%s, $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
								 link->epoch_args), n, values);
}

void
saga_call_claim(SagaPqLink *link, const SagaRequest *request, const char *op)
{
	const char *values[4];
	char		saga[40];
	char		not_after[64];

	saga_uuid_text(&request->saga_id, saga);
	saga_call_time_text(request->not_after, not_after, sizeof(not_after));
	values[0] = saga;
	values[1] = request->step;
	values[2] = op;
	values[3] = not_after;
	saga_link_query(link, SAGA_ITEM_RUN,
					psprintf("SELECT saga_participant.claim(%s, $1, $2, $3, $4)",
							 link->epoch_args), 4, values);
}

static void
send_purge_message(SagaPqLink *link, const SagaRequest *request)
{
	const char *values[2];
	char		before[64];

	saga_call_time_text(request->purge_before, before, sizeof(before));
	values[0] = before;
	values[1] = request->purge_live ? request->purge_live : "{}";
	saga_link_query(link, SAGA_ITEM_RUN,
					psprintf("SELECT saga_participant.purge(%s, $1, $2)",
							 link->epoch_args), 2, values);
}

/*
 * {BEGIN; run; COMMIT; Sync}: one segment, one flush, one system call.  After
 * an error the participant skips the rest and has rolled back; the session
 * only needs to hear ROLLBACK before it is used again (see roll_back()).
 */
static void
send_run(SagaPqLink *link, SagaStatement *statement)
{
	SagaConnCall *call = link->link.call;
	SagaPiece	piece;

	saga_link_begin_exchange(link, SAGA_LINK_RUNNING);
	saga_call_restore_statements(link);
	saga_call_begin(link, call->request.timeout_ms);
	switch (call->request.mode)
	{
		case SAGA_REQUEST_CLAIM:
			saga_call_claim(link, &call->request,
							call->request.op == SAGA_OP_UNDO ? "u" : "a");
			break;
		case SAGA_REQUEST_PURGE:
			send_purge_message(link, &call->request);
			break;
		default:
			current_piece(link, &piece);
			saga_call_run_piece(link, &piece, statement);
			break;
	}
	link->rolled_back = false;
	/* not prepared: an action may have dropped all that is */
	saga_link_query(link, SAGA_ITEM_COMMIT, "COMMIT", 0, NULL);
	saga_link_sync(link);
	saga_link_flush(link);
}

/* ---- results ---- */

const char *
saga_call_answer_text(const PGresult *res)
{
	const char *text;
	int			len;

	if (PQresultStatus(res) != PGRES_TUPLES_OK || PQntuples(res) != 1 ||
		PQnfields(res) != 1 || PQgetisnull(res, 0, 0))
		return NULL;
	text = PQgetvalue(res, 0, 0);
	len = PQgetlength(res, 0, 0);
	/* run() bounds it, but this is another's word */
	if (len > saga_connector_max_result() + 1 ||
		!pg_verifymbstr(text, len, true))
		return NULL;
	return text;
}

/*
 * 'D...' done, 'P...' was done, 'N' undo of nothing, 'R' refused, 'A' taken on,
 * now or before.
 */
static void
take_run_result(SagaPqLink *link, SagaConnCall *call, const PGresult *res)
{
	const char *text = saga_call_answer_text(res);

	if (text == NULL)
		return;
	call->answer.kind = SAGA_ANSWER_DONE;
	if (call->request.mode == SAGA_REQUEST_PURGE)
		call->answer.result = MemoryContextStrdup(call->context, text);
	else
	{
		if (text[0] == 'R')
			call->answer.kind = SAGA_ANSWER_REFUSED;
		else if (text[0] == 'A')
			call->answer.kind = SAGA_ANSWER_ACCEPTED;
		else if (strchr("DPN", text[0]) == NULL || text[0] == '\0')
			return;
		call->answer.ran = text[0] == 'D' || text[0] == 'P';
		call->answer.result = text[1] == '\0' ? NULL :
			MemoryContextStrdup(call->context, text + 1);
	}
	link->ran = true;
}

/* Was it our own claim that waited in vain?  Then no attempt was made. */
bool
saga_call_waited(const PGresult *res)
{
	const char *sqlstate = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	const char *context = PQresultErrorField(res, PG_DIAG_CONTEXT);

	return sqlstate && context &&
		(strcmp(sqlstate, "55P03") == 0 || strcmp(sqlstate, "57014") == 0) &&
		(strstr(context, "INSERT INTO saga_participant.barrier") != NULL ||
		 strstr(context, "pg_advisory_xact_lock_shared(pg_catalog.hashtextextended(p_coordinator") != NULL);
}

static void
take_description(SagaPqLink *link, const PGresult *res)
{
	SagaStatement *statement = &link->described;

	if (PQresultStatus(res) != PGRES_COMMAND_OK)
		return;
	statement->nfields = PQnfields(res);
	if (statement->nfields == 1)
	{
		statement->is_void = PQftype(res, 0) == VOIDOID;
		strlcpy(statement->column, PQfname(res, 0), sizeof(statement->column));
	}
}

static void
take_commit(SagaPqLink *link, const PGresult *res)
{
	if (PQresultStatus(res) == PGRES_COMMAND_OK)
		link->committed = strcmp(PQcmdStatus(unconstify(PGresult *, res)),
								 "COMMIT") == 0;
}

void
saga_call_result(SagaPqLink *link, SagaItem item, const PGresult *res)
{
	SagaConnCall *call = link->link.call;

	switch (item)
	{
		case SAGA_ITEM_DESCRIBE:
			take_description(link, res);
			break;
		case SAGA_ITEM_RUN:
		case SAGA_ITEM_COMMIT:
			if (saga_branch_is(call))
				saga_branch_result(link, item, res);
			else if (item == SAGA_ITEM_COMMIT)
				take_commit(link, res);
			else if (PQresultStatus(res) == PGRES_FATAL_ERROR)
				call->answer.free = saga_call_waited(res);
			else
				take_run_result(link, call, res);
			break;
		default:
			break;
	}
}

/* The statement is prepared, or cannot be. */
void
saga_call_described(SagaPqLink *link)
{
	SagaConnCall *call = link->link.call;
	MemoryContext old;

	if (link->fatal && !link->failed)
	{
		saga_call_lost(link, "connection ended");
		return;
	}
	old = MemoryContextSwitchTo(call->context);
	if (link->failed && link->counting && !link->fatal)
	{
		/* no such clause there (MERGE, a rule), or a fault it has anyway */
		SagaPiece	piece;

		current_piece(link, &piece);
		send_describe(link, piece.tmpl, false);
	}
	else if (link->failed)
		saga_link_call_done(link);
	else
	{
		link->statements[link->nstatements] = link->described;
		link->statements[link->nstatements].last_used = ++link->use_counter;
		link->nstatements++;
		if (saga_branch_is(call))
			saga_branch_send(link);
		else
			send_piece(link);
	}
	MemoryContextSwitchTo(old);
}

/*
 * Something dropped our prepared statements (DISCARD ALL in an action), or
 * what one returns has changed: prepare anew and try once more.  Nothing has
 * happened, for the transaction was rolled back.
 */
static bool
try_once_more(SagaPqLink *link, SagaConnCall *call)
{
	if (call->retried || link->fatal ||
		PQtransactionStatus(link->conn) != PQTRANS_IDLE ||
		(strcmp(link->sqlstate, "26000") != 0 &&
		 strcmp(link->sqlstate, "0A000") != 0))
		return false;
	call->retried = true;
	link->statements_lost = true;
	memset(&call->answer, 0, sizeof(call->answer));
	saga_call_send(link);
	return true;
}

/* A purge removes so many rows at a time; it goes on for half of its time. */
static bool
purge_goes_on(SagaPqLink *link, SagaConnCall *call)
{
	MemoryContext old;

	if (call->request.mode != SAGA_REQUEST_PURGE || link->failed ||
		!link->committed || call->answer.result == NULL ||
		strtol(call->answer.result, NULL, 10) < PURGE_ROWS ||
		GetCurrentTimestamp() - call->sent > call->request.timeout_ms * INT64CONST(500))
		return false;
	old = MemoryContextSwitchTo(call->context);
	send_run(link, NULL);
	MemoryContextSwitchTo(old);
	return true;
}

/*
 * The call failed for certain, nothing of it is left; end the failed
 * transaction block.  True if that is under way.
 */
static bool
roll_back(SagaPqLink *link)
{
	char		sqlstate[6];

	if (!link->failed || link->fatal || link->rolled_back ||
		PQtransactionStatus(link->conn) != PQTRANS_INERROR)
		return false;
	strlcpy(sqlstate, link->sqlstate, sizeof(sqlstate));
	saga_link_begin_exchange(link, SAGA_LINK_RUNNING);
	link->failed = true;		/* and stays so, whatever comes */
	strlcpy(link->sqlstate, sqlstate, sizeof(link->sqlstate));
	link->rolled_back = true;
	saga_link_query(link, SAGA_ITEM_OTHER, "ROLLBACK", 0, NULL);
	saga_link_sync(link);
	saga_link_flush(link);
	return true;
}

/* All results of the call's transaction are in. */
void
saga_call_ran(SagaPqLink *link)
{
	SagaConnCall *call = link->link.call;

	if (roll_back(link))
		return;
	if (saga_branch_is(call) && saga_branch_ran(link))
		return;
	if (link->failed && link->uncertain)
	{
		saga_call_lost(link, call->answer.message);
		return;
	}
	if (purge_goes_on(link, call))
		return;
	if (link->failed)
	{
		if (try_once_more(link, call))
			return;
		if (strcmp(link->sqlstate, "25006") == 0)
		{
			/* it became a standby: not a fault of the step's */
			saga_call_error(call, SAGA_ANSWER_TRANSIENT, "57P03",
							"the participant is read-only",
							call->answer.message,
							"Give all members of its cluster in the server's option host, with target_session_attrs 'read-write'.");
			link->fatal = true;
		}
	}
	else if (!link->ran)
	{
		saga_call_error(call, SAGA_ANSWER_BROKEN, "0A000",
						"the participant's saga_participant.run() gave an answer that is not understood",
						NULL, "Install schema saga_participant anew.");
		/* ... but it may have been committed */
		if (link->committed)
		{
			call->answer.kind = SAGA_ANSWER_UNKNOWN;
			call->answer.has_sqlstate = false;
		}
	}
	else if (!link->committed || link->no_transaction)
		saga_call_error(call, SAGA_ANSWER_TRANSIENT, "40000",
						"the participant rolled the transaction back", NULL, NULL);
	saga_link_call_done(link);
}

/* The connection broke while it had this call; 'why' may be part of it. */
void
saga_call_lost(SagaPqLink *link, const char *why)
{
	SagaConnCall *call = link->link.call;
	SagaFault	fault;
	char		message[256];
	bool		certain = link->failed && !link->uncertain;

	snprintf(message, sizeof(message),
			 "connection to server \"%s\" was lost before its answer",
			 link->link.endpoint->server->name);
	saga_fault_set(&fault, SAGA_ANSWER_TRANSIENT, "08006", message, why, NULL);
	if (!certain)
	{
		/* the COMMIT goes out with the rest: from then on it may be done */
		if (link->state == SAGA_LINK_RUNNING)
			fault.kind = SAGA_ANSWER_UNKNOWN;
		call->answer.free = false;
		saga_call_fault(call, &fault);
		fault.kind = SAGA_ANSWER_TRANSIENT;
	}
	link->link.call = NULL;
	saga_call_finish(call);
	saga_endpoint_link_gone(&link->link, &fault);
}
