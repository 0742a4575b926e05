/*
 * picture.c
 *		saga.graph(): a definition's order as text that draws itself, in
 *		Mermaid or in the DOT language of Graphviz.
 *
 * Sessions only.  Draws the compiled graph, which is what the machine runs,
 * and not the stored body.  Writes nothing.
 */
#include "postgres.h"

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"

#include "compat.h"
#include "define.h"
#include "rights.h"

PG_FUNCTION_INFO_V1(saga_graph);

typedef struct Picture
{
	const SagaDefinition *def;
	const SagaGraph *graph;
	bool		dot;
	StringInfoData out;
} Picture;

/* Text inside double quotes: nothing of it may end the quotes or be markup. */
static void
add_label(Picture *p, const char *text)
{
	for (const char *c = text; *c; c++)
	{
		if (p->dot)
		{
			if (*c == '"' || *c == '\\')
				appendStringInfoChar(&p->out, '\\');
			appendStringInfoChar(&p->out, *c);
		}
		else if (strchr("\"#<>&;\\`", *c))
			appendStringInfo(&p->out, "#%d;", (unsigned char) *c);
		else
			appendStringInfoChar(&p->out, *c);
	}
}

/* A further line of a label; what is ours in it is plain. */
static void
add_line(Picture *p, const char *before, const char *text)
{
	appendStringInfoString(&p->out, p->dot ? "\\n" : "<br/>");
	appendStringInfoString(&p->out, before);
	if (text)
		add_label(p, text);
}

/* What encloses a label: the shape tells the kind. */
static void
shape_of(const SagaNode *node, bool dot, const char **open, const char **close)
{
	*open = dot ? "shape=box" : "[";
	*close = "]";
	if (node->pivot)
		*open = dot ? "shape=hexagon" : "{{", *close = "}}";
	switch (node->kind)
	{
		case SAGA_NODE_STEP:
			break;
		case SAGA_NODE_UNDO:
			*open = dot ? "shape=box, style=dashed" : "[\\", *close = "/]";
			break;
		case SAGA_NODE_SLEEP:
		case SAGA_NODE_SIGNAL:
			*open = dot ? "shape=box, style=rounded" : "([", *close = "])";
			break;
		case SAGA_NODE_BRANCH:
			*open = dot ? "shape=diamond" : "{", *close = "}";
			break;
		case SAGA_NODE_EACH:
		case SAGA_NODE_LOOP:
			*open = dot ? "shape=box, peripheries=2" : "[[", *close = "]]";
			break;
		case SAGA_NODE_SAVEPOINT:
			*open = dot ? "shape=circle" : "((", *close = "))";
			break;
	}
}

static void
add_facts(Picture *p, int i)
{
	const SagaNode *node = &p->graph->nodes[i];
	const SagaCall *action = p->def->action[i];

	if (action && action->server)
		add_line(p, "at ", action->server);
	switch (node->kind)
	{
		case SAGA_NODE_UNDO:
			add_line(p, "undo only", NULL);
			break;
		case SAGA_NODE_SLEEP:
			add_line(p, "sleep", NULL);
			break;
		case SAGA_NODE_SIGNAL:
			add_line(p, "signal ", p->graph->signals[node->signal]);
			break;
		case SAGA_NODE_BRANCH:
			add_line(p, "branch", NULL);
			break;
		case SAGA_NODE_EACH:
			add_line(p, "for each", NULL);
			break;
		case SAGA_NODE_LOOP:
			add_line(p, "loop", NULL);
			break;
		case SAGA_NODE_SAVEPOINT:
			add_line(p, "save-point", NULL);
			break;
		case SAGA_NODE_STEP:
			if (node->pivot)
				add_line(p, "pivot", NULL);
			if (node->has_compensation)
				add_line(p, "can be undone", NULL);
			break;
	}
	if (node->has_condition)
		add_line(p, "if", NULL);
}

static void
add_node(Picture *p, int i, const char *indent)
{
	const char *open;
	const char *close;

	shape_of(&p->graph->nodes[i], p->dot, &open, &close);
	if (p->dot)
		appendStringInfo(&p->out, "%sn%d [%s, label=\"", indent, i, open);
	else
		appendStringInfo(&p->out, "%sn%d%s\"", indent, i, open);
	add_label(p, p->graph->nodes[i].name);
	add_facts(p, i);
	appendStringInfo(&p->out, "\"%s\n", p->dot ? "];" : close);
}

/* label NULL: none */
static void
add_edge(Picture *p, int from, int to, const char *label, bool dashed)
{
	if (p->dot)
	{
		appendStringInfo(&p->out, "  n%d -> n%d", from, to);
		if (label || dashed)
			appendStringInfo(&p->out, " [%s%s%s%s%s]", label ? "label=\"" : "",
							 label ? label : "", label ? "\"" : "",
							 label && dashed ? ", " : "", dashed ? "style=dashed" : "");
		appendStringInfoString(&p->out, ";\n");
	}
	else if (label)
		appendStringInfo(&p->out, "  n%d %s|%s| n%d\n", from, dashed ? "-.->" : "-->", label, to);
	else
		appendStringInfo(&p->out, "  n%d %s n%d\n", from, dashed ? "-.->" : "-->", to);
}

/* The nodes of a body stand in a frame of their own. */
static void
add_scope(Picture *p, int s)
{
	const SagaScope *scope = &p->graph->scopes[s];

	appendStringInfo(&p->out, p->dot ? "  subgraph cluster_%d {\n    label=\"" : "  subgraph s%d [\"", s);
	add_label(p, p->graph->nodes[scope->owner].name);
	appendStringInfoString(&p->out, p->dot ? "\";\n" : "\"]\n");
	for (int i = scope->first; i < scope->first + scope->nnodes; i++)
		add_node(p, i, "    ");
	appendStringInfoString(&p->out, p->dot ? "  }\n" : "  end\n");
}

static void
add_edges(Picture *p, int i)
{
	const SagaNode *node = &p->graph->nodes[i];

	for (int d = 0; d < node->ndeps; d++)
	{
		int			from = node->deps[d];
		bool		of_case = node->branch >= 0 && node->branch == from &&
			p->graph->nodes[from].kind == SAGA_NODE_BRANCH;

		add_edge(p, from, i, of_case ? psprintf("case %d", node->branch_case + 1) : NULL, false);
	}
	if (p->graph->nscopes > 0 && node->scope > 0 && node->ndeps == 0)
		add_edge(p, p->graph->scopes[node->scope].owner, i, NULL, true);
	if (node->on_failure == SAGA_FAILURE_GOTO)
		add_edge(p, i, node->savepoint, "back", true);
}

/* saga.graph(definition text, format text, version integer) -> text */
Datum
saga_graph(PG_FUNCTION_ARGS)
{
	char	   *name;
	char	   *format;
	Picture		p;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	format = text_to_cstring(PG_GETARG_TEXT_PP(1));
	p.dot = strcmp(format, "dot") == 0;
	if (!p.dot && strcmp(format, "mermaid") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unrecognized format: \"%s\"", format),
				 errhint("Formats are mermaid and dot.")));
	saga_require_privilege(name, "see");
	p.def = saga_definition_by_name(name, PG_ARGISNULL(2) ? 0 : PG_GETARG_INT32(2));
	if (p.def == NULL)
		saga_no_such_definition(name);
	p.graph = p.def->graph;

	initStringInfo(&p.out);
	if (p.dot)
	{
		appendStringInfoString(&p.out, "digraph \"");
		add_label(&p, p.def->name);
		appendStringInfoString(&p.out, "\" {\n  node [fontname=\"sans-serif\"];\n");
	}
	else
		appendStringInfoString(&p.out, "flowchart TD\n");
	for (int i = 0; i < p.graph->nnodes; i++)
		if (p.graph->nodes[i].scope == 0)
			add_node(&p, i, "  ");
	for (int s = 1; s < p.graph->nscopes; s++)
		add_scope(&p, s);
	for (int i = 0; i < p.graph->nnodes; i++)
		add_edges(&p, i);
	if (p.dot)
		appendStringInfoString(&p.out, "}\n");
	PG_RETURN_TEXT_P(cstring_to_text_with_len(p.out.data, p.out.len));
}
