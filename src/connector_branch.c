/*
 * connector_branch.c
 *		Two-phase commit over a connection to a PostgreSQL participant: one
 *		branch prepared, committed, rolled back; those that stand listed.
 *
 * Called by connector_call.c for the modes that are its own.  Touches no table
 * and decides nothing about sagas.
 *
 * A branch claims its key (op 'p') and runs its steps in the transaction that
 * is prepared, so the key becomes visible when that is committed, and a claim
 * of the same key waits while it stands.  Hence:
 *
 * - PREPARE again, after an answer was lost: the gid stands, or the key is
 *   taken: it has voted (SGB06).
 * - COMMIT PREPARED finds no gid: with the key there it was committed before;
 *   without it somebody has rolled it back.
 * - ROLLBACK PREPARED also refuses the key, so that a PREPARE still under way
 *   cannot succeed later.
 *
 * COMMIT PREPARED and ROLLBACK PREPARED stand alone in their segments: they
 * cannot run in a transaction block.  Nor can they have a condition, so an
 * exchange before them finds out whether this is still the coordinator.
 */
#include "postgres.h"

#include "utils/json.h"
#include "utils/memutils.h"

#include "connector_libpq.h"

/* The participant's word for: this branch has voted yes already. */
#define HAS_VOTED		"SGB06"

#define LIST_MAX		1000	/* prepared transactions in one answer */

bool
saga_branch_is(const SagaConnCall *call)
{
	return call->request.mode >= SAGA_REQUEST_PREPARE;
}

void
saga_branch_piece(const SagaConnCall *call, int part, SagaPiece *piece)
{
	const SagaCall *branch = call->request.call;
	const SagaCall *step = branch->parts[part];
	int			first = 0;

	for (int i = 0; i < part; i++)
		first += branch->parts[i]->tmpl->nparams;
	piece->step = branch->part_names[part];
	piece->op = "p";
	piece->tmpl = step->tmpl;
	piece->values = call->request.values + first;
	piece->shape = step->shape;
	piece->expect_rows = step->expect_rows;
	piece->timeout_ms = step->timeout_ms;
	/* their results make one */
	piece->max_result = saga_connector_max_result() / branch->nparts;
}

/* ---- sending ---- */

/* A command whose only parameter cannot be one. */
static void
send_command(SagaPqLink *link, const char *command, const char *gid)
{
	char	   *literal = PQescapeLiteral(link->conn, gid, strlen(gid));

	if (literal == NULL)
	{
		/* not in the encoding of the connection: it names nothing there */
		link->lost = true;
		return;
	}
	saga_link_query(link, SAGA_ITEM_COMMIT, psprintf("%s %s", command, literal),
					0, NULL);
	PQfreemem(literal);
}

/* First statement of the transaction: claims the key, tells if it has voted. */
static void
send_vote(SagaPqLink *link, const SagaRequest *request)
{
	const char *values[4];
	char		saga[40];
	char		not_after[64];

	saga_uuid_text(&request->saga_id, saga);
	saga_call_time_text(request->not_after, not_after, sizeof(not_after));
	values[0] = saga;
	values[1] = request->step;
	values[2] = not_after;
	values[3] = request->gid;
	saga_link_query(link, SAGA_ITEM_RUN,
					psprintf("SELECT saga_participant.vote(%s, $1, $2, $3, $4)",
							 link->epoch_args), 4, values);
}

/* All of it is one segment: one round trip to a vote. */
static void
send_prepare(SagaPqLink *link)
{
	SagaConnCall *call = link->link.call;
	int			nparts = call->request.call->nparts;
	SagaPiece	piece;
	SagaStatement *statement;

	/* every statement must be known on this connection first */
	for (; link->part < nparts; link->part++)
	{
		saga_branch_piece(call, link->part, &piece);
		if (saga_call_statement(link, &piece) == NULL)
			return;
	}
	link->part = 0;
	call->parts = palloc0(sizeof(char *) * nparts);
	saga_link_begin_exchange(link, SAGA_LINK_RUNNING);
	saga_call_restore_statements(link);
	saga_branch_piece(call, 0, &piece);
	saga_call_begin(link, piece.timeout_ms);
	send_vote(link, &call->request);
	for (int i = 0; i < nparts; i++)
	{
		saga_branch_piece(call, i, &piece);
		statement = saga_call_statement(link, &piece);
		Assert(statement != NULL);
		if (i > 0)
			saga_call_set_timeout(link, piece.timeout_ms);
		saga_call_run_piece(link, &piece, statement);
	}
	link->rolled_back = false;
	send_command(link, "PREPARE TRANSACTION", call->request.gid);
	saga_link_sync(link);
	saga_link_flush(link);
}

static void
send_list(SagaPqLink *link, const SagaRequest *request)
{
	const char *values[1] = {request->gid};

	saga_link_begin_exchange(link, SAGA_LINK_RUNNING);
	saga_link_query(link, SAGA_ITEM_RUN,
					psprintf("SELECT coalesce(pg_catalog.json_agg(pg_catalog.json_build_array(p.gid, "
							 "pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) p.prepared))), '[]') "
							 "FROM (SELECT gid, prepared FROM pg_catalog.pg_prepared_xacts "
							 "WHERE database OPERATOR(pg_catalog.=) pg_catalog.current_database() "
							 "AND owner OPERATOR(pg_catalog.=) current_user "
							 "AND pg_catalog.starts_with(gid, $1) LIMIT %d) p", LIST_MAX),
					1, values);
	saga_link_sync(link);
	saga_link_flush(link);
}

/*
 * Before the command, which cannot have a condition: nobody raises the epoch
 * until it is over.  Behind a pooler there is no session to hold the lock.
 */
static void
send_fence(SagaPqLink *link)
{
	link->stage = SAGA_STAGE_FENCE;
	saga_link_begin_exchange(link, SAGA_LINK_RUNNING);
	saga_link_query(link, SAGA_ITEM_RUN,
					psprintf("SELECT saga_participant.fence(%s, %s)",
							 link->epoch_args, link->prepared ? "true" : "false"),
					0, NULL);
	saga_link_sync(link);
	saga_link_flush(link);
}

static void
send_end(SagaPqLink *link, const SagaRequest *request)
{
	const char *values[1] = {saga_connector_epoch()->coordinator};

	link->stage = SAGA_STAGE_END;
	saga_link_begin_exchange(link, SAGA_LINK_RUNNING);
	send_command(link, request->mode == SAGA_REQUEST_COMMIT_PREPARED ?
				 "COMMIT PREPARED" : "ROLLBACK PREPARED", request->gid);
	saga_link_sync(link);
	if (link->prepared)
	{
		saga_link_query(link, SAGA_ITEM_OTHER,
						"SELECT saga_participant.unfence($1)", 1, values);
		saga_link_sync(link);
	}
	saga_link_flush(link);
}

void
saga_branch_send(SagaPqLink *link)
{
	const SagaRequest *request = &link->link.call->request;

	switch (request->mode)
	{
		case SAGA_REQUEST_PREPARE:
			send_prepare(link);
			break;
		case SAGA_REQUEST_LIST_PREPARED:
			send_list(link, request);
			break;
		default:
			send_fence(link);
			break;
	}
}

/* COMMIT PREPARED found nothing: was it committed before? */
static void
send_look(SagaPqLink *link, const SagaRequest *request)
{
	const char *values[3];
	char		saga[40];

	saga_uuid_text(&request->saga_id, saga);
	values[0] = saga_connector_epoch()->coordinator;
	values[1] = saga;
	values[2] = request->step;
	link->stage = SAGA_STAGE_SETTLE;
	saga_link_begin_exchange(link, SAGA_LINK_RUNNING);
	saga_link_query(link, SAGA_ITEM_RUN,
					"SELECT pg_catalog.max(b.status) FROM saga_participant.barrier b "
					"WHERE b.coordinator OPERATOR(pg_catalog.=) $1 "
					"AND b.saga OPERATOR(pg_catalog.=) $2::pg_catalog.uuid "
					"AND b.step OPERATOR(pg_catalog.=) $3 "
					"AND b.op OPERATOR(pg_catalog.=) 'p'", 3, values);
	saga_link_sync(link);
	saga_link_flush(link);
}

/* It is rolled back: now nothing may come after that. */
static void
send_refusal(SagaPqLink *link, const SagaRequest *request)
{
	link->stage = SAGA_STAGE_SETTLE;
	saga_link_begin_exchange(link, SAGA_LINK_RUNNING);
	saga_call_begin(link, request->timeout_ms);
	saga_call_claim(link, request, "p");
	link->rolled_back = false;
	saga_link_query(link, SAGA_ITEM_COMMIT, "COMMIT", 0, NULL);
	saga_link_sync(link);
	saga_link_flush(link);
}

/* ---- results ---- */

static void
take_answer(SagaPqLink *link, SagaConnCall *call, const PGresult *res)
{
	const SagaRequest *request = &call->request;
	const char *text;

	if (PQresultStatus(res) == PGRES_FATAL_ERROR)
	{
		/* of a part: which; of the claim: perhaps no attempt was made */
		call->answer.part = link->part;
		call->answer.free = link->part == 0 && saga_call_waited(res);
		return;
	}
	text = saga_call_answer_text(res);
	if (request->mode == SAGA_REQUEST_PREPARE)
	{
		if (text == NULL || (text[0] != 'D' && text[0] != 'P'))
			return;
		if (link->part > 0)
			call->parts[link->part - 1] = MemoryContextStrdup(call->context, text + 1);
		link->ran = link->part++ == request->call->nparts;
		return;
	}
	if (text)
		call->answer.result = MemoryContextStrdup(call->context, text);
	link->ran = true;
}

void
saga_branch_result(SagaPqLink *link, SagaItem item, const PGresult *res)
{
	SagaConnCall *call = link->link.call;
	const char *tag;

	if (item == SAGA_ITEM_RUN)
	{
		take_answer(link, call, res);
		return;
	}
	if (PQresultStatus(res) != PGRES_COMMAND_OK)
		return;
	tag = PQcmdStatus(unconstify(PGresult *, res));
	if (call->request.mode == SAGA_REQUEST_PREPARE)
		link->committed = strcmp(tag, "PREPARE TRANSACTION") == 0;
	else if (link->stage == SAGA_STAGE_SETTLE)
		link->committed = strcmp(tag, "COMMIT") == 0;
	else
		link->committed = link->ran = true;
}

/* What came of an exchange. */
typedef enum Ran
{
	RAN_AS_ANY,					/* what any call's would mean */
	RAN_ANSWERED,				/* call->answer is filled */
	RAN_GOES_ON,				/* the next exchange is out */
} Ran;

static Ran
done(SagaConnCall *call, const char *result)
{
	memset(&call->answer, 0, sizeof(call->answer));
	call->answer.kind = SAGA_ANSWER_DONE;
	call->answer.ran = true;
	call->answer.result = result;
	return RAN_ANSWERED;
}

/* {"step": result, ...} */
static char *
results_json(const SagaConnCall *call)
{
	StringInfoData out;

	initStringInfo(&out);
	for (int i = 0; i < call->request.call->nparts; i++)
	{
		const char *result = call->parts[i];

		appendStringInfoString(&out, i == 0 ? "{" : ", ");
		escape_json(&out, call->request.call->part_names[i]);
		appendStringInfo(&out, ": %s", result && result[0] ? result : "null");
	}
	appendStringInfoChar(&out, '}');
	return out.data;
}

/* Another session is at it: which of us ends it does not matter. */
static bool
is_busy(const SagaPqLink *link)
{
	return strcmp(link->sqlstate, "55000") == 0;
}

static bool
is_gone(const SagaPqLink *link)
{
	return strcmp(link->sqlstate, "42704") == 0;
}

static Ran
contradicted(SagaConnCall *call, const char *message, const char *detail)
{
	saga_call_error(call, SAGA_ANSWER_BROKEN, "42704",
					psprintf(message, call->request.gid), detail,
					"Find out who did it, mend the data there by hand, then skip the step.");
	return RAN_ANSWERED;
}

static Ran
prepare_ran(SagaPqLink *link, SagaConnCall *call)
{
	if (link->failed)
		return !link->fatal && strcmp(link->sqlstate, HAS_VOTED) == 0 ?
			done(call, NULL) : RAN_AS_ANY;
	return link->ran && link->committed ? done(call, results_json(call)) :
		RAN_AS_ANY;
}

static Ran
fence_ran(SagaPqLink *link, SagaConnCall *call)
{
	if (link->failed || !link->ran)
	{
		link->fatal = true;		/* so that no lock stays behind */
		return RAN_AS_ANY;
	}
	send_end(link, &call->request);
	return RAN_GOES_ON;
}

static Ran
end_ran(SagaPqLink *link, SagaConnCall *call)
{
	bool		commit = call->request.mode == SAGA_REQUEST_COMMIT_PREPARED;

	if (link->failed && !link->fatal && is_busy(link))
	{
		saga_call_error(call, SAGA_ANSWER_TRANSIENT, "55P03",
						call->answer.message, NULL, NULL);
		return RAN_ANSWERED;
	}
	if (link->failed && (link->fatal || !is_gone(link)))
		return RAN_AS_ANY;
	if (call->request.step == NULL || (commit && !link->failed))
		return done(call, NULL);
	if (commit)
		send_look(link, &call->request);
	else
		send_refusal(link, &call->request);
	return RAN_GOES_ON;
}

static Ran
settle_ran(SagaPqLink *link, SagaConnCall *call)
{
	const char *found = call->answer.result;

	if (link->failed || !link->ran)
		return RAN_AS_ANY;
	if (call->request.mode == SAGA_REQUEST_COMMIT_PREPARED)
	{
		if (found && strcmp(found, "done") == 0)
			return done(call, NULL);
		return contradicted(call, "prepared transaction \"%s\" is gone, and was not committed",
							"The decision was to commit it. Somebody rolled it back, or the participant lost it in a failover.");
	}
	if (!link->committed || link->no_transaction || found == NULL)
		return RAN_AS_ANY;
	if (found[0] == 'R')
		return done(call, NULL);
	return contradicted(call, "prepared transaction \"%s\" was committed, though it was to be rolled back",
						"Somebody committed it by hand.");
}

bool
saga_branch_ran(SagaPqLink *link)
{
	SagaConnCall *call = link->link.call;
	MemoryContext old = MemoryContextSwitchTo(call->context);
	Ran			ran;

	if (call->request.mode == SAGA_REQUEST_PREPARE)
		ran = prepare_ran(link, call);
	else if (call->request.mode == SAGA_REQUEST_LIST_PREPARED)
		ran = link->failed || call->answer.result == NULL ? RAN_AS_ANY :
			done(call, call->answer.result);
	else if (link->stage == SAGA_STAGE_FENCE)
		ran = fence_ran(link, call);
	else if (link->stage == SAGA_STAGE_END)
		ran = end_ran(link, call);
	else
		ran = settle_ran(link, call);
	MemoryContextSwitchTo(old);
	if (ran == RAN_ANSWERED)
		saga_link_call_done(link);
	return ran != RAN_AS_ANY;
}
