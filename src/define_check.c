/*
 * define_check.c
 *		What only catalogs and participants can say about a definition: do its
 *		servers exist, do its statements parse, may its owner run them.
 *
 * Called by define.c alone, on a compiled definition.  Statements are parsed
 * and analysed, never run: local ones as the owner under the stored
 * search_path, in a subtransaction that is rolled back; remote ones at the
 * participant.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "nodes/parsenodes.h"
#include "parser/analyze.h"
#include "parser/parse_relation.h"
#include "parser/parser.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/guc.h"

#include "compat.h"
#include "define.h"
#include "participant.h"
#include "rights.h"
#include "spi_util.h"

/* One template of the definition, with what the server said of it. */
typedef struct Statement
{
	const char *step;			/* NULL: the definition's own */
	const char *part;
	const SagaCall *call;
	ErrorData  *error;			/* of our own parser */
} Statement;

typedef struct Check
{
	const SagaDefinition *def;
	SagaFaults *faults;
	int			n;
	Statement  *statements;
} Check;

/* ---- one statement ---- */

/* Cannot run inside somebody else's transaction, or leave traces in it. */
static bool
is_refused(const Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_TransactionStmt:
		case T_PrepareStmt:
		case T_ExecuteStmt:
		case T_DeallocateStmt:
		case T_DeclareCursorStmt:
		case T_FetchStmt:
		case T_ClosePortalStmt:
		case T_ListenStmt:
		case T_UnlistenStmt:
		case T_CopyStmt:
		case T_VariableSetStmt:
		case T_VariableShowStmt:
		case T_ConstraintsSetStmt:
		case T_DiscardStmt:
		case T_LoadStmt:
		case T_VacuumStmt:
		case T_ClusterStmt:
		case T_CheckPointStmt:
		case T_CreatedbStmt:
		case T_DropdbStmt:
		case T_CreateTableSpaceStmt:
		case T_DropTableSpaceStmt:
		case T_AlterSystemStmt:
			return true;
		default:
			return false;
	}
}

static bool
takes_parameters(const Node *stmt)
{
	return IsA(stmt, SelectStmt) || IsA(stmt, InsertStmt) ||
		IsA(stmt, UpdateStmt) || IsA(stmt, DeleteStmt) ||
		IsA(stmt, MergeStmt) || IsA(stmt, CallStmt);
}

static void
analyse(RawStmt *raw, const SagaTemplate *tmpl)
{
	Oid		   *types = palloc(Max(1, tmpl->nparams) * sizeof(Oid));
	int			n = tmpl->nparams;
	Query	   *query;

	for (int i = 0; i < n; i++)
		types[i] = tmpl->params[i].bind_type;
	query = parse_analyze_varparams(raw, tmpl->sql, &types, &n, NULL);
	for (int i = 0; i < tmpl->nparams; i++)
		if (types[i] == InvalidOid || types[i] == UNKNOWNOID)
			ereport(ERROR,
					(errcode(ERRCODE_INDETERMINATE_DATATYPE),
					 errmsg("could not determine data type of parameter \"%s\"",
							tmpl->params[i].name)));
	if (isQueryUsingTempRelation(query))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("temporary tables cannot be used"),
				 errhint("The step runs in another session, which does not see them.")));
}

typedef struct ParseArg
{
	const SagaDefinition *def;
	const SagaCall *call;
} ParseArg;

/* For saga_try(), which also undoes the switch of user. */
static void
parse_statement(void *arg)
{
	const ParseArg *p = arg;
	const SagaTemplate *tmpl = p->call->tmpl;
	SagaUserSwitch unused;
	List	   *parsed;
	RawStmt    *raw;

	saga_run_as_begin(p->def->owner, p->def->search_path, &unused);
	(void) set_config_option("standard_conforming_strings", "on", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	parsed = raw_parser(tmpl->sql, RAW_PARSE_DEFAULT);
	if (list_length(parsed) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PSTATEMENT_DEFINITION),
				 errmsg("there are %d statements instead of one",
						list_length(parsed)),
				 errhint("Use a function, or WITH, to do more in one statement.")));
	raw = linitial_node(RawStmt, parsed);
	if (is_refused(raw->stmt))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("%s cannot be a step of a saga",
						GetCommandTagName(CreateCommandTag(raw->stmt))),
				 errhint("A step is a part of a transaction that saga begins and ends.")));
	if (tmpl->nparams > 0 && !takes_parameters(raw->stmt))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("%s cannot have parameters",
						GetCommandTagName(CreateCommandTag(raw->stmt))),
				 errhint("Call a function that takes them.")));
	if (p->call->server == NULL && takes_parameters(raw->stmt))
		analyse(raw, tmpl);
}

static void
add_fault(Check *check, const Statement *s, const char *sqlstate,
		  const char *message, const char *hint)
{
	SagaFault  *fault;

	if (strcmp(sqlstate, "42725") == 0 || strcmp(sqlstate, "42P18") == 0)
		hint = "Write a cast, as in :name::bigint, or declare the types with input and returns.";
	else if (s->call->server == NULL && strcmp(sqlstate, "42P01") == 0)
		hint = psprintf("It was looked for as role \"%s\" with search_path %s.",
						GetUserNameFromId(check->def->owner, true),
						check->def->search_path);
	else if (s->call->server == NULL && strcmp(sqlstate, "42883") == 0)
		hint = psprintf("It was looked for as role \"%s\" with search_path %s. Parameters without a declared type may need a cast.",
						GetUserNameFromId(check->def->owner, true),
						check->def->search_path);
	fault = saga_fault(check->faults, s->step, hint, "%s: %s", s->part, message);
	strlcpy(fault->sqlstate, sqlstate, sizeof(fault->sqlstate));
}

static void
add_error_fault(Check *check, const Statement *s)
{
	add_fault(check, s, unpack_sql_state(s->error->sqlerrcode),
			  s->error->message, s->error->hint);
}

/* ---- the statements of a definition ---- */

static void
add_statement(Check *check, const char *step, const char *part,
			  const SagaCall *call)
{
	Statement  *s;

	if (call == NULL || call->tmpl == NULL)
		return;
	s = &check->statements[check->n++];
	memset(s, 0, sizeof(*s));
	s->step = step;
	s->part = part;
	s->call = call;
}

static const char *
control_part(const SagaDefinition *def, int node)
{
	switch (def->graph->nodes[node].kind)
	{
		case SAGA_NODE_BRANCH:
			return "case";
		case SAGA_NODE_EACH:
			return "for_each";
		case SAGA_NODE_LOOP:
			return "while";
		default:
			return "time";
	}
}

static void
collect_statements(Check *check)
{
	const SagaDefinition *def = check->def;
	int			nnodes = def->graph->nnodes;

	check->statements = palloc((5 * nnodes + 4) * sizeof(Statement));
	for (int i = 0; i < nnodes; i++)
	{
		const char *step = def->graph->nodes[i].name;
		const SagaCall *action = def->action[i];

		add_statement(check, step, "condition", def->condition[i]);
		add_statement(check, step, control_part(def, i), def->control[i]);
		add_statement(check, step,
					  action && action->kind == SAGA_CALL_CHILD ? "input" : "action",
					  action);
		if (action != NULL)
			add_statement(check, step, "decline_if", action->decline_if);
		add_statement(check, step, "compensation", def->compensation[i]);
	}
	add_statement(check, NULL, "output", def->output);
	add_statement(check, NULL, "on_completed", def->on_completed);
	add_statement(check, NULL, "on_compensated", def->on_compensated);
	add_statement(check, NULL, "on_stuck", def->on_stuck);
}

/* ---- participants ---- */

typedef struct ServerLookup
{
	const char *name;
	Oid			owner;
	SagaServer *server;
} ServerLookup;

static void
look_up_server(void *arg)
{
	ServerLookup *l = arg;

	l->server = saga_server_lookup(l->name, l->owner, NULL, NULL);
}

/* Have the participant parse all that goes there. */
static void
ask_participant(Check *check, const SagaServer *server, Statement **asked, int n)
{
	SagaParseRequest *requests = palloc0(Max(1, n) * sizeof(SagaParseRequest));
	char	   *unreachable;

	for (int i = 0; i < n; i++)
	{
		const SagaTemplate *tmpl = asked[i]->call->tmpl;
		Oid		   *types = palloc(Max(1, tmpl->nparams) * sizeof(Oid));

		for (int j = 0; j < tmpl->nparams; j++)
			types[j] = tmpl->params[j].bind_type;
		requests[i].sql = tmpl->sql;
		requests[i].ntypes = tmpl->nparams;
		requests[i].types = types;
	}
	unreachable = saga_participant_parse(server, requests, n);
	if (unreachable == NULL &&
		(check->def->protocols & (1 << SAGA_PROTOCOL_TWO_PHASE)) != 0 &&
		!saga_participant_prepares(server))
		saga_fault(check->faults, NULL,
				   "Set max_prepared_transactions there to more than the sagas that run at a time, and restart it; or allow protocol 'saga' only.",
				   "server \"%s\" cannot take part in two-phase commit: its max_prepared_transactions is 0",
				   server->name);
	if (unreachable != NULL)
		ereport(WARNING,
				(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
				 errmsg("statements of saga \"%s\" for server \"%s\" could not be checked",
						check->def->name, server->name),
				 errdetail_internal("%s", unreachable)));

	for (int i = 0; i < n; i++)
	{
		/* its parser may be newer than ours, so only it has the last word */
		if (unreachable != NULL && asked[i]->error != NULL)
			add_error_fault(check, asked[i]);
		else if (unreachable == NULL && !requests[i].ok)
			add_fault(check, asked[i], requests[i].sqlstate,
					  requests[i].message, requests[i].hint);
	}
}

/*
 * All that goes to one server.  'parse' is false when the definition has
 * faults already: then nobody is asked over the network.
 */
static void
check_server(Check *check, const char *name, bool parse)
{
	ServerLookup lookup = {.name = name,.owner = check->def->owner};
	ErrorData  *error = saga_try(look_up_server, &lookup);
	Statement **asked = palloc(check->n * sizeof(Statement *));
	int			n = 0;

	for (int i = 0; i < check->n; i++)
	{
		Statement  *s = &check->statements[i];

		if (s->call->server == NULL || strcmp(s->call->server, name) != 0)
			continue;
		if (error != NULL)
			add_fault(check, s, unpack_sql_state(error->sqlerrcode),
					  error->message, error->hint);
		/* a request has been checked in full when it was compiled */
		if (s->call->tmpl->kind == SAGA_TEMPLATE_HTTP)
			continue;
		/* more than a syntax error of ours is a fault in any version */
		if (s->error != NULL &&
			(s->error->sqlerrcode != ERRCODE_SYNTAX_ERROR || error != NULL))
			add_error_fault(check, s);
		else
			asked[n++] = s;
	}
	if (error == NULL && parse && n > 0)
		ask_participant(check, lookup.server, asked, n);
	else
		for (int i = 0; i < n; i++)
			if (asked[i]->error != NULL)
				add_error_fault(check, asked[i]);
}

static void
check_servers(Check *check)
{
	bool		parse = check->faults->items == NIL;

	for (int i = 0; i < check->n; i++)
	{
		const char *name = check->statements[i].call->server;
		bool		seen = false;

		if (name == NULL)
			continue;
		for (int j = 0; j < i; j++)
			if (check->statements[j].call->server != NULL &&
				strcmp(check->statements[j].call->server, name) == 0)
				seen = true;
		if (!seen)
			check_server(check, name, parse);
	}
}

/* Does it run SQL of the owner's in this database? */
static bool
is_local(const SagaCall *call)
{
	if (call == NULL)
		return false;
	if (call->decline_if != NULL && !call->decline_if->plain)
		return true;
	return call->server == NULL && call->tmpl != NULL && !call->plain;
}

bool
saga_definition_has_local(const SagaDefinition *def)
{
	for (int i = 0; i < def->graph->nnodes; i++)
		if (is_local(def->action[i]) || is_local(def->compensation[i]) ||
			is_local(def->condition[i]) || is_local(def->control[i]))
			return true;
	return is_local(def->output) || is_local(def->on_completed) ||
		is_local(def->on_compensated) || is_local(def->on_stuck);
}

void
saga_definition_check_world(const SagaDefinition *def, SagaFaults *faults)
{
	Check		check = {.def = def,.faults = faults};

	if (!saga_owner_may_run_local(def->owner) && saga_definition_has_local(def))
		saga_fault(faults, NULL,
				   "Define it as an ordinary role, or have saga.allow_superuser_steps set.",
				   "its owner \"%s\" is a superuser, and it acts in this database",
				   GetUserNameFromId(def->owner, true));
	collect_statements(&check);
	for (int i = 0; i < check.n; i++)
	{
		Statement  *s = &check.statements[i];
		ParseArg	arg = {def, s->call};

		if (s->call->tmpl->kind == SAGA_TEMPLATE_HTTP)
			continue;
		s->error = saga_try(parse_statement, &arg);
		if (s->error != NULL && s->call->server == NULL)
			add_error_fault(&check, s);
	}
	check_servers(&check);
}
