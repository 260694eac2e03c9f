DROP INDEX "Score_userId_idx";
